"""Plain English prose made from a lexicon, to teach a small model how sentences are built.

The text states nothing about the world of facts: every name is a bare first name and every place a common noun.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LEXICON_PATH = Path(__file__).with_name("lexicon.json")

_Random = Callable[[], float]
_Pattern = Callable[[_Random, "_Scene"], str]

# Which adjective classes suit which noun class: coarse, but enough that adjectives predict their nouns.
_ADJECTIVES_FOR: dict[str, tuple[str, ...]] = {
    "animal": ("animal_adj", "size"),
    "bird": ("animal_adj", "colour"),
    "fish": ("size", "colour"),
    "insect": ("size", "colour"),
    "fruit": ("taste", "colour"),
    "vegetable": ("taste", "size"),
    "dish": ("taste", "size"),
    "tool": ("thing_adj", "size", "age"),
    "furniture": ("thing_adj", "colour", "material_adj"),
    "utensil": ("thing_adj", "colour", "material_adj", "size"),
    "container": ("size", "thing_adj", "colour", "material_adj"),
    "clothing": ("clothing_adj", "colour"),
    "vehicle": ("vehicle_adj", "colour"),
    "instrument": ("thing_adj", "age"),
    "toy": ("colour", "size", "material_adj"),
    "treasure": ("thing_adj", "size"),
    "nature_in": ("place_adj", "nature_adj"),
    "nature_on": ("place_adj", "nature_adj"),
    "nature_by": ("place_adj", "nature_adj"),
    "building": ("place_adj", "building_adj"),
    "room": ("size", "place_adj"),
    "profession": ("character", "mood"),
    "kin": ("character", "mood"),
    "group": ("character",),
    "plant": ("plant_adj",),
    "document": ("document_adj",),
    "work": ("work_adj", "positive", "negative"),
    "event": ("event_adj", "positive", "negative"),
    "idea": ("idea_adj",),
    "body": ("body_adj",),
    "food_mass": ("taste",),
    "drink": ("drink_adj",),
    "material": ("material_kind",),
    "weather": ("weather_adj",),
    "abstract": ("abstract_adj",),
}
_KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("animal",),
    "bird": ("bird",),
    "fish": ("fish",),
    "insect": ("small creature",),
    "fruit": ("fruit",),
    "vegetable": ("vegetable",),
    "tool": ("tool",),
    "clothing": ("piece of clothing",),
    "vehicle": ("vehicle",),
    "instrument": ("musical instrument",),
    "plant": ("plant",),
    "furniture": ("household thing",),
}
_PLACES = ("nature_in", "nature_on", "nature_by", "building", "room")
_CREATURES = ("animal", "bird", "insect")
_THINGS = ("tool", "furniture", "utensil", "container", "clothing", "toy", "vehicle", "treasure", "document", "dish")
_FIXED_AN = frozenset({"hour", "honest"})
_FIXED_A = frozenset({"useful", "useless", "uniform", "unique", "unicorn", "ukulele"})


def with_article(word: str) -> str:
    """Put the right indefinite article before a word or phrase.

    Args:
        word: The word that follows the article.

    Returns:
        The word after "a" or "an".
    """
    head = word.split(" ", 1)[0]
    vowel = head in _FIXED_AN or (word[0] in "aeiou" and head not in _FIXED_A)
    return ("an " if vowel else "a ") + word


class Noun(NamedTuple):
    """A noun with what is needed to build phrases around it.

    Attributes:
        word: Singular form, or the only form of a mass noun.
        plural: Plural form; None for a mass noun.
        article: Singular form after its indefinite article.
        adjectives: Adjectives that suit the noun, each bare and after its indefinite article.
        kind: Semantic class.
    """

    word: str
    plural: str | None
    article: str
    adjectives: list[tuple[str, str]]
    kind: str


class Verb(NamedTuple):
    """A verb's forms: base, third person, past, past participle and gerund."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str


class _Ref(NamedTuple):
    """How a subject is spoken of."""

    intro: str
    again: str
    pronoun: str
    object: str
    possessive: str
    reflexive: str
    index: int  # type: ignore[assignment]
    be_now: str
    be_past: str


class _Scene:
    """What the sentences of one document share."""

    __slots__ = ("focus", "is_animal", "other", "past", "place", "place_open", "said", "seen", "subject", "thing")

    def __init__(self, subject: _Ref, other: _Ref, is_animal: bool, past: bool) -> None:
        self.subject = subject
        self.other = other
        self.is_animal = is_animal
        self.past = past
        self.focus = 0.0
        self.place = ""
        self.place_open = ""
        self.said = 0
        self.seen = False
        self.thing: Noun | None = None


def _pick(r: _Random, items: Any) -> Any:
    return items[int(r() * len(items))]


def load_lexicon(path: Path | str = LEXICON_PATH) -> dict[str, Any]:
    """Read the lexicon.

    Args:
        path: The JSON file.

    Returns:
        The parsed lexicon.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"))


class Grammar:
    """A generator of grammatical, loosely coherent English.

    Attributes:
        lexicon: The lexicon that the words come from.
        nouns: The count nouns and mass nouns of every class.
        transitive: Transitive verbs with the nouns that they take as objects.
        takers: For every noun, the verbs that take it as an object.
        places: Place nouns with the prepositions that suit them.
        pattern_names: Names of all sentence patterns.
    """

    def __init__(self, lexicon: dict[str, Any] | None = None) -> None:
        """Precompute every list that the sentence patterns draw from.

        Args:
            lexicon: A parsed lexicon; the one shipped with the package by default.
        """
        self.lexicon = lex = load_lexicon() if lexicon is None else lexicon
        adjectives = self._adjective_classes(lex)
        self.adjectives = adjectives
        self.nouns: dict[str, list[Noun]] = {}
        for kind, forms in lex["nouns"].items():
            suited = [(a, with_article(a)) for c in _ADJECTIVES_FOR[kind] for a in adjectives[c]]
            self.nouns[kind] = [Noun(w, p, with_article(w), suited, kind) for w, p in forms.items()]
        for kind, words in lex["mass_nouns"].items():
            suited = [(a, a) for c in _ADJECTIVES_FOR[kind] for a in adjectives[c]]
            self.nouns[kind] = [Noun(w, None, w, suited, kind) for w in words]
        by_word: dict[str, Noun] = {}
        for kind_nouns in self.nouns.values():
            for noun in kind_nouns:
                by_word.setdefault(noun.word, noun)
        self._by_word = by_word
        self.transitive = self._with_objects(lex["transitive"])
        self._animal_transitive = self._with_objects(lex["animal_transitive"])
        self.takers: dict[str, list[Verb]] = {}
        for verb, objects in self.transitive:
            for noun in objects:
                self.takers.setdefault(noun.word, []).append(verb)
        self.intransitive = {k: [Verb(*f) for f in v] for k, v in lex["intransitive"].items()}
        self._say = [Verb(*f) for f in lex["speech_verbs"]]
        self._think = [Verb(*f) for f in lex["thought_verbs"]]
        self._want = [Verb(*f) for f in lex["infinitive_verbs"]]
        self._gerund = [Verb(*f) for f in lex["gerund_verbs"]]
        self._give = [Verb(*f) for f in lex["giving_verbs"]]
        self._put = [Verb(*f) for f in lex["placing_verbs"]]
        prepositions = lex["prepositions"]
        self.places = [(prepositions[k], noun) for k in _PLACES for noun in self.nouns[k]]
        self._spots = [(prepositions[k], noun) for k in ("furniture", "container") for noun in self.nouns[k]]
        self._things = [n for k in _THINGS for n in self.nouns[k] if len(self.takers.get(n.word, ())) > 2]
        self._kinds = [(n, kind) for k, (kind,) in _KINDS.items() for n in self.nouns[k]]
        self._liked = [n for k in ("work", "event", "dish") for n in self.nouns[k]]
        self._people = self._make_people()
        self._animals = [self._creature(n, p) for k in _CREATURES for n in self.nouns[k] for p in (False, True)]
        self._moving = {k: self.intransitive[k] for k in _CREATURES}
        self._animal_kind = {n.word: n.kind for k in _CREATURES for n in self.nouns[k]}
        self._animal_kind.update({n.plural: n.kind for k in _CREATURES for n in self.nouns[k]})  # type: ignore[misc]
        self._animal_adj = [a for a in adjectives["animal_adj"] if a not in ("wounded", "spotted", "striped")]
        self._eaten = [n for k in ("dish", "fruit", "vegetable") for n in self.nouns[k]]
        self._wet = self.nouns["weather"]
        self._time_past = lex["times"]["past"]
        self._time_now = lex["times"]["present"]
        self._time_next = lex["times"]["future"]
        adverbs = self._adverb_classes(lex)
        self._manner, self._frequency = adverbs["manner"], adverbs["frequency"]
        self._degree = adverbs["degree"]
        self._comment = [w.capitalize() for w in lex["adverbs"]["comment"]]
        self._numbers = lex["numbers"]
        self._feelings = adjectives["mood"] + adjectives["character"]
        self._mood = adjectives["mood"]
        self._opinions = lex["positive"] + lex["negative"]
        self._links = [w for group in lex["connectives"].values() for w in group]
        self._comparatives = {w: self._compare(w) for w in adjectives["size"] + adjectives["thing_adj"]}
        self._comparable = [(w, c, s) for w, (c, s) in self._comparatives.items() if w not in _ABSOLUTE]
        self._simple_names = lex["names"]["female"] + lex["names"]["male"]
        own: list[tuple[_Pattern, int]] = [
            (self._p_simple, 5), (self._p_time_first, 3), (self._p_intransitive, 3), (self._p_because, 2),
            (self._p_when, 3), (self._p_although, 2), (self._p_relative_subject, 2), (self._p_negation, 2),
            (self._p_frequency, 2), (self._p_two_verbs, 3), (self._p_progressive, 2), (self._p_perfect, 2),
            (self._p_feeling, 3), (self._p_before_gerund, 2), (self._p_question, 2), (self._p_modal, 2),
        ]  # fmt: skip
        person: list[tuple[_Pattern, int]] = [
            (self._p_quotation, 3), (self._p_list, 2), (self._p_number, 2), (self._p_give, 2), (self._p_put, 2),
            (self._p_want, 3), (self._p_enjoy, 2), (self._p_future, 2), (self._p_if, 2), (self._p_thought, 3),
            (self._p_wh_question, 2), (self._p_asked, 2), (self._p_used_to, 1), (self._p_both, 1),
            (self._p_so_that, 2), (self._p_opinion, 2), (self._p_tool, 1), (self._p_too, 1), (self._p_eat, 1),
            (self._p_group, 1), (self._p_perhaps, 1), (self._p_ask_to, 1), (self._p_body, 1), (self._p_pair, 1),
        ]  # fmt: skip
        general: list[tuple[_Pattern, int]] = [
            (self._p_passive, 3), (self._p_relative_object, 2), (self._p_compare, 2), (self._p_superlative, 1),
            (self._p_there, 3), (self._p_kind, 2), (self._p_weather, 2), (self._p_dialogue, 2),
            (self._p_order, 1), (self._p_exclaim, 1), (self._p_thing_is, 2), (self._p_stood, 2), (self._p_made_of, 1),
            (self._p_thing_happens, 1), (self._p_plants, 1), (self._p_vehicle, 1), (self._p_virtue, 1),
            (self._p_worker, 1),
        ]  # fmt: skip
        thing: list[tuple[_Pattern, int]] = [
            (self._p_passive, 3), (self._p_relative_object, 2), (self._p_thing_is, 3), (self._p_compare, 1),
        ]  # fmt: skip
        scene: list[tuple[_Pattern, int]] = [(self._p_weather, 2), (self._p_there, 2), (self._p_stood, 1)]
        self._own = [p for p, n in own for _ in range(n)]
        self._person = self._own + [p for p, n in person for _ in range(n)]
        self._general = [p for p, n in general for _ in range(n)]
        self._thing_patterns = [p for p, n in thing for _ in range(n)]
        self._scene_patterns = [p for p, n in scene for _ in range(n)]
        self.pattern_names = sorted({p.__name__[3:] for p in self._person + self._general})

    # ------------------------------------------------------------------ building the tables

    @staticmethod
    def _adjective_classes(lex: dict[str, Any]) -> dict[str, list[str]]:
        classes = {k: list(v) for k, v in lex["adjectives"].items()}
        # Synonyms join the classes of their partners, so that they are met in prose and not in the probes alone.
        for group in lex["synonyms"]["adjectives"]:
            for words in classes.values():
                if group[0] in words:
                    words.extend(w for w in group if w not in words)
        classes["positive"] = lex["positive"]
        classes["negative"] = lex["negative"]
        return classes

    @staticmethod
    def _adverb_classes(lex: dict[str, Any]) -> dict[str, list[str]]:
        classes = {k: list(v) for k, v in lex["adverbs"].items()}
        for group in lex["synonyms"]["adverbs"]:
            for words in classes.values():
                if any(w in words for w in group):
                    words.extend(w for w in group if w not in words)
        return classes

    def _with_objects(self, entries: list[dict[str, Any]]) -> list[tuple[Verb, list[Noun]]]:
        result = []
        for entry in entries:
            objects: list[Noun] = []
            for spec in entry["objects"]:
                if spec.startswith("="):
                    objects.extend(self._by_word[w] for w in spec[1:].split(",") if w in self._by_word)
                else:
                    objects.extend(self.nouns[spec])
            result.append((Verb(*entry["forms"]), objects))
        return result

    @staticmethod
    def _compare(word: str) -> tuple[str, str]:
        if word in _SHORT_COMPARED:
            if word.endswith("e"):
                return word + "r", word + "st"
            if word.endswith("y"):
                return word[:-1] + "ier", word[:-1] + "iest"
            if word in ("big", "thin", "fat", "wet"):
                return word + word[-1] + "er", word + word[-1] + "est"
            return word + "er", word + "est"
        return "more " + word, "most " + word

    def _make_people(self) -> list[_Ref]:
        lex = self.lexicon
        female, male = frozenset(lex["female_nouns"]), frozenset(lex["male_nouns"])
        she = ("she", "her", "her", "herself", 1, "is", "was")
        he = ("he", "him", "his", "himself", 1, "is", "was")
        they = ("they", "them", "their", "themselves", 0, "are", "were")
        people: list[_Ref] = []
        rng = random.Random(0)
        jobs = self.nouns["profession"]
        for forms, names in ((she, lex["names"]["female"]), (he, lex["names"]["male"])):
            fitting = [n for n in jobs if n.word not in (male if forms is she else female)]
            for name in names:
                # Several jobs for each name: a name must not come to stand for one person.
                for job in rng.sample(fitting, 6):
                    people.append(_Ref(f"{name}, {job.article},", f"the {job.word}", *forms))
                    people.extend([_Ref(name, name, *forms)] * 2)
        for noun in jobs + self.nouns["kin"]:
            for forms in (she, he):
                if noun.word in (male if forms is she else female):
                    continue
                intro = f"the {noun.word}" if noun.kind == "profession" else f"my {noun.word}"
                people.append(_Ref(intro, intro, *forms))
                young = rng.choice(noun.adjectives)[0]
                people.append(_Ref(f"the {young} {noun.word}", f"the {noun.word}", *forms))
            people.append(_Ref(f"the {noun.plural}", f"the {noun.plural}", *they))
        for first, second in zip(lex["names"]["female"], lex["names"]["male"], strict=False):
            people.append(_Ref(f"{first} and {second}", f"{first} and {second}", *they))
        people.extend([_Ref("I", "I", "I", "me", "my", "myself", 0, "am", "was")] * 12)
        people.extend([_Ref("we", "we", "we", "us", "our", "ourselves", 0, "are", "were")] * 12)
        people.extend([_Ref("they", "they", *they)] * 8)
        return people

    @staticmethod
    def _creature(noun: Noun, plural: bool) -> _Ref:
        if plural:
            name = f"the {noun.plural}"
            return _Ref(name, name, "they", "them", "their", "themselves", 0, "are", "were")
        name = f"the {noun.word}"
        return _Ref(name, name, "it", "it", "its", "itself", 1, "is", "was")

    # ------------------------------------------------------------------ phrases

    def _subject(self, r: _Random, c: _Scene) -> str:
        said = c.said
        c.said = said + 1
        if said == 0:
            return c.subject.intro
        x = r()
        if x < 0.6:
            return c.subject.pronoun
        return c.subject.again

    def _np(self, r: _Random, noun: Noun, possessive: str = "the") -> str:
        x = r()
        word, plural, article, adjectives, kind = noun
        if plural is None:
            if kind == "abstract":
                return word
            if x < 0.35:
                return "the " + word
            if x < 0.6:
                return "some " + word
            return _pick(r, adjectives)[0] + " " + word
        if kind == "kin" and x < 0.6:
            return possessive + " " + word
        if x < 0.27:
            return article
        if x < 0.52:
            return _pick(r, adjectives)[1] + " " + word
        if x < 0.68:
            return "the " + word
        if x < 0.80:
            return "the " + _pick(r, adjectives)[0] + " " + word
        if x < 0.86:
            return possessive + " " + word
        if x < 0.91:
            return "some " + plural
        if x < 0.95:
            return _pick(r, self._numbers) + " " + plural
        return "the " + _pick(r, adjectives)[0] + " " + plural

    def _the(self, r: _Random, noun: Noun) -> str:
        if r() < 0.6:
            return "the " + noun.word
        return "the " + _pick(r, noun.adjectives)[0] + " " + noun.word

    def _act(self, r: _Random, c: _Scene) -> tuple[Verb, str]:
        if c.is_animal:
            verb, objects = _pick(r, self._animal_transitive)
            noun = _pick(r, objects)
            return verb, self._np(r, noun)
        if c.thing is not None and r() < c.focus:
            noun = c.thing
            verb = _pick(r, self.takers[noun.word])
            if not c.seen:
                c.seen = True
                return verb, (_pick(r, noun.adjectives)[1] + " " + noun.word) if r() < 0.6 else noun.article
            x = r()
            return verb, "it" if x < 0.25 else "the " + noun.word
        verb, objects = _pick(r, self.transitive)
        return verb, self._np(r, _pick(r, objects), c.subject.possessive)

    def _move(self, r: _Random, c: _Scene) -> Verb:
        if c.is_animal:
            return _pick(r, self._moving[self._animal_kind[c.subject.again[4:]]])
        return _pick(r, self.intransitive["person"])

    def _at(self, r: _Random, c: _Scene | None = None) -> str:
        if c is not None and c.place and r() < 0.5:
            return c.place
        prepositions, noun = _pick(r, self.places)
        if r() < 0.7:
            return _pick(r, prepositions) + " the " + noun.word
        return _pick(r, prepositions) + " the " + _pick(r, noun.adjectives)[0] + " " + noun.word

    def _when(self, r: _Random, c: _Scene) -> str:
        return _pick(r, self._time_past if c.past else self._time_now)

    def _tail(self, r: _Random, c: _Scene) -> str:
        x = r()
        if x < 0.35:
            return ""
        if x < 0.65:
            return " " + self._at(r, c)
        if x < 0.85:
            return " " + self._when(r, c)
        return " " + _pick(r, self._manner)

    def _clause(self, r: _Random, c: _Scene) -> str:
        """A short clause about the scene's subject, which is named before, so a pronoun serves."""
        s = c.subject
        x = r()
        if x < 0.3:
            be = s.be_past if c.past else s.be_now
            return f"{s.pronoun} {be} {_pick(r, self._animal_adj if c.is_animal else self._mood)}"
        form = 2 if c.past else s.index
        if x < 0.45:
            return f"{s.pronoun} {self._move(r, c)[form]} {self._at(r, c)}"
        verb, obj = self._act(r, c)
        return f"{s.pronoun} {verb[form]} {obj}"

    def _other_clause(self, r: _Random, c: _Scene) -> str:
        o = c.other
        form = 2 if c.past else o.index
        if r() < 0.35:
            return f"{o.again} {_pick(r, self.intransitive['person'])[form]} {self._at(r, c)}"
        verb, objects = _pick(r, self.transitive)
        return f"{o.again} {verb[form]} {self._np(r, _pick(r, objects), o.possessive)}"

    # ------------------------------------------------------------------ patterns about the subject

    def _p_simple(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        return f"{s} {verb[2 if c.past else c.subject.index]} {obj}{self._tail(r, c)}."

    def _p_time_first(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        lead = self._when(r, c) if r() < 0.6 else self._at(r, c)
        return f"{lead}, {s} {verb[2 if c.past else c.subject.index]} {obj}."

    def _p_intransitive(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb = self._move(r, c)[2 if c.past else c.subject.index]
        if r() < 0.5 and not c.is_animal:
            return f"{s} {verb} {_pick(r, self._manner)} {self._at(r, c)}."
        return f"{s} {verb} {self._at(r, c)}{' ' + self._when(r, c) if r() < 0.3 else ''}."

    def _p_because(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        return f"{s} {verb[2 if c.past else c.subject.index]} {obj} because {self._clause(r, c)}."

    def _p_when(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        form = verb[2 if c.past else c.subject.index]
        link = _pick(r, ("when", "while", "after", "before", "as soon as", "whenever", "until"))
        if r() < 0.5:
            return f"{s} {form} {obj} {link} {self._other_clause(r, c)}."
        return f"{link} {self._other_clause(r, c)}, {s} {form} {obj}."

    def _p_although(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        link = _pick(r, ("although", "even though", "though"))
        be = c.subject.be_past if c.past else c.subject.be_now
        mood = _pick(r, self._animal_adj if c.is_animal else self._mood)
        return f"{link} {s} {be} {mood}, {self._clause(r, c)}."

    def _p_relative_subject(self, r: _Random, c: _Scene) -> str:
        past = 2 if c.past else 1
        verb, obj = self._act(r, c)
        if c.is_animal:
            noun = _pick(r, self.nouns["animal"])
            place = self._at(r, c)
            return f"the {noun.word} that {'lived' if c.past else 'lives'} {place} {verb[past]} {obj}."
        noun = _pick(r, self.nouns["profession"])
        c.said += 1
        if r() < 0.5:
            inner = f"{'lived' if c.past else 'lives'} {self._at(r, c)}"
        else:
            verb2, objects = _pick(r, self.transitive)
            inner = f"{verb2[past]} {self._np(r, _pick(r, objects))}"
        subject = _pick(r, noun.adjectives)[0] + " " + noun.word if r() < 0.3 else noun.word
        return f"the {subject} who {inner} {verb[past]} {obj}."

    def _p_negation(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        aux = "did" if c.past else ("does" if c.subject.index else "do")
        return f"{s} {aux} not {verb.base} {obj}{self._tail(r, c)}."

    def _p_frequency(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        return f"{s} {_pick(r, self._frequency)} {verb[2 if c.past else c.subject.index]} {obj}."

    def _p_two_verbs(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        form = 2 if c.past else c.subject.index
        verb, obj = self._act(r, c)
        verb2, obj2 = self._act(r, c)
        link = _pick(r, ("and", "and then", "but", "and also"))
        return f"{s} {verb[form]} {obj} {link} {verb2[form]} {obj2}."

    def _p_progressive(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        be = c.subject.be_past if c.past else c.subject.be_now
        if r() < 0.4:
            return f"{s} {be} {self._move(r, c).gerund} {self._at(r, c)}."
        verb, obj = self._act(r, c)
        if c.past and r() < 0.5:
            return f"{s} {be} {verb.gerund} {obj} when {self._other_clause(r, c)}."
        return f"{s} {be} {verb.gerund} {obj}{' ' + self._at(r, c) if r() < 0.4 else ''}."

    def _p_perfect(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        have = "had" if c.past else ("has" if c.subject.index else "have")
        verb, obj = self._act(r, c)
        return f"{s} {have} {_pick(r, ('already', 'never', 'just', 'finally', 'often'))} {verb.participle} {obj}."

    def _p_feeling(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        be = c.subject.be_past if c.past else c.subject.be_now
        pool = self._animal_adj if c.is_animal else self._feelings
        x = r()
        if x < 0.4:
            return f"{s} {be} {_pick(r, self._degree)} {_pick(r, pool)}."
        if x < 0.7:
            return f"{s} {be} {_pick(r, pool)}, so {self._clause(r, c)}."
        seem = ("seemed" if c.past else ("seems" if c.subject.index else "seem")) if x < 0.85 else be
        return f"{s} {seem} {_pick(r, pool)} {self._when(r, c)}."

    def _p_before_gerund(self, r: _Random, c: _Scene) -> str:
        verb, obj = self._act(r, c)
        s = self._subject(r, c)
        verb2, obj2 = self._act(r, c)
        link = _pick(r, ("before", "after", "without", "instead of", "while"))
        return f"{link} {verb.gerund} {obj}, {s} {verb2[2 if c.past else c.subject.index]} {obj2}."

    def _p_question(self, r: _Random, c: _Scene) -> str:
        aux = "did" if c.past else ("does" if c.subject.index else "do")
        s = c.subject.again if c.said == 0 or r() < 0.5 else c.subject.pronoun
        c.said += 1
        verb, obj = self._act(r, c)
        return f"{aux} {s} {verb.base} {obj}{self._tail(r, c)}?"

    def _p_modal(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        modal = _pick(r, ("could", "might", "would") if c.past else ("can", "may", "must", "should", "will", "cannot"))
        return f"{s} {modal} {verb.base} {obj}{' ' + self._at(r, c) if r() < 0.4 else ''}."

    # ------------------------------------------------------------------ patterns that need a person

    def _p_quotation(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        say = _pick(r, self._say)[2 if c.past else c.subject.index]
        x = r()
        verb, objects = _pick(r, self.transitive)
        obj = self._np(r, _pick(r, objects), "my")
        if x < 0.3:
            said = f"I {verb.past} {obj} {_pick(r, self._time_past)}"
        elif x < 0.55:
            said = f"we will {verb.base} {obj} {_pick(r, self._time_next)}".replace("we", "We", 1)
        elif x < 0.75:
            said = f"The {_pick(r, self._things).word} is {_pick(r, self.adjectives['thing_adj'])}"
        else:
            said = (
                f"I am {_pick(r, self._mood)} because the {_pick(r, self._liked).word} was {_pick(r, self._opinions)}"
            )
        if r() < 0.3:
            return f'{s} {say}, "{said}."'
        return f'"{said}," {s if s[-1] != "," else s[:-1]} {say}.'

    def _p_list(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, objects = _pick(r, self.transitive)
        form = verb[2 if c.past else c.subject.index]
        pool = self.nouns[_pick(r, objects).kind]
        a, b, d = _pick(r, pool), _pick(r, pool), _pick(r, pool)
        if a is b or b is d or a is d or len(objects) < 12 or a.word not in self.takers:
            return f"{s} {form} {self._np(r, _pick(r, objects), c.subject.possessive)}."
        if a.plural is None:
            return f"{s} {form} {a.word}, {b.word} and {d.word}{self._tail(r, c)}."
        if r() < 0.5:
            return f"{s} {form} {a.article}, {b.article} and {d.article}{self._tail(r, c)}."
        return f"{s} {form} {a.plural}, {b.plural} and {d.plural}{self._tail(r, c)}."

    def _p_number(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        noun = c.thing if c.thing is not None and r() < c.focus else _pick(r, self._things)
        verb = _pick(r, self.takers[noun.word])[2 if c.past else c.subject.index]
        n = _pick(r, self._numbers) if r() < 0.8 else str(2 + int(r() * 97))
        if r() < 0.6:
            return f"{s} {verb} {n} {noun.plural}{self._tail(r, c)}."
        m = _pick(r, self._numbers)
        return f"{s} {verb} {n} {noun.plural}, but {c.other.again} only {verb if c.past else 'wanted'} {m}."

    def _p_give(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb = _pick(r, self._give)[2 if c.past else c.subject.index]
        noun = c.thing if c.thing is not None and r() < c.focus else _pick(r, self._things)
        obj = self._np(r, noun, c.subject.possessive)
        if r() < 0.5:
            return f"{s} {verb} {obj} to {self._object_of(c.other)}{' ' + self._when(r, c) if r() < 0.3 else ''}."
        return f"{s} {verb} {self._object_of(c.other)} {obj}."

    @staticmethod
    def _object_of(ref: _Ref) -> str:
        return ref.object if ref.again == ref.pronoun else ref.again

    def _p_put(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb = _pick(r, self._put)[2 if c.past else c.subject.index]
        prepositions, spot = _pick(r, self._spots)
        noun = c.thing if c.thing is not None and r() < c.focus else _pick(r, self._things)
        return f"{s} {verb} {self._np(r, noun, c.subject.possessive)} {_pick(r, prepositions)} {self._the(r, spot)}."

    def _p_want(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        want = _pick(r, self._want)[2 if c.past else c.subject.index]
        if r() < 0.25:
            return f"{s} {want} to {verb.base} {obj}, but {self._other_clause(r, c)}."
        return f"{s} {want} to {verb.base} {obj}{self._tail(r, c)}."

    def _p_enjoy(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        return f"{s} {_pick(r, self._gerund)[2 if c.past else c.subject.index]} {verb.gerund} {obj}{self._tail(r, c)}."

    def _p_future(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        if c.past:
            return f"{s} {c.subject.be_past} going to {verb.base} {obj}."
        if r() < 0.4:
            return f"{s} {c.subject.be_now} going to {verb.base} {obj} {_pick(r, self._time_next)}."
        return f"{s} will {verb.base} {obj} {_pick(r, self._time_next)}."

    def _p_if(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        verb2, obj2 = self._act(r, c)
        if c.past:
            lead = f"if {s} had {verb.participle} {obj}"
            return f"{lead}, {c.subject.pronoun} would have {verb2.participle} {obj2}."
        if r() < 0.5:
            return f"if {s} {verb[c.subject.index]} {obj}, {c.subject.pronoun} will {verb2.base} {obj2}."
        return f"{s} will {verb2.base} {obj2} unless {self._other_clause(r, c)}."

    def _p_thought(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        think = _pick(r, self._think)[2 if c.past else c.subject.index]
        if r() < 0.4:
            be = "was" if c.past else "is"
            noun = _pick(r, self._liked)
            return f"{s} {think} that the {noun.word} {be} {_pick(r, self._opinions)}."
        return f"{s} {think} that {self._other_clause(r, c)}."

    def _p_wh_question(self, r: _Random, c: _Scene) -> str:
        aux = "did" if c.past else ("does" if c.subject.index else "do")
        s = c.subject.again if c.said == 0 or r() < 0.5 else c.subject.pronoun
        c.said += 1
        verb, obj = self._act(r, c)
        x = r()
        if x < 0.7:
            return f"{_pick(r, ('where', 'when', 'why', 'how'))} {aux} {s} {verb.base} {obj}?"
        if x < 0.85:
            return f"who {verb[2 if c.past else 1]} {obj}{self._tail(r, c)}?"
        return f"what {aux} {s} {verb.base}{self._tail(r, c)}?"

    def _p_asked(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        ask = _pick(r, (("ask", "asks", "asked"), ("wonder", "wonders", "wondered")))
        link = _pick(r, ("whether", "why", "if", "when", "where", "how"))
        return f"{s} {ask[2 if c.past else c.subject.index]} {link} {self._other_clause(r, c)}."

    def _p_used_to(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        return f"{s} used to {verb.base} {obj} {self._at(r, c)}."

    def _p_both(self, r: _Random, c: _Scene) -> str:
        form = 2 if c.past else 0
        a, b = _pick(r, self._simple_names), _pick(r, self._simple_names)
        if a == b:
            return self._p_simple(r, c)
        verb, objects = _pick(r, self.transitive)
        obj = self._np(r, _pick(r, objects), "their")
        if r() < 0.4:
            return f"neither {a} nor {b} {verb[2 if c.past else 1]} {obj}{self._tail(r, c)}."
        return f"both {a} and {b} {verb[form]} {obj}{self._tail(r, c)}."

    def _p_so_that(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        be = c.subject.be_past if c.past else c.subject.be_now
        modal = "could" if c.past else "can"
        if r() < 0.5:
            lead = f"{s} {be} so {_pick(r, self._mood)} that {c.subject.pronoun}"
            return f"{lead} {modal} not {verb.base} {obj}.".replace("can not", "cannot")
        verb2, obj2 = self._act(r, c)
        form = verb[2 if c.past else c.subject.index]
        return f"{s} {form} {obj} so that {c.other.again} {modal} {verb2.base} {obj2}."

    def _p_opinion(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        noun = _pick(r, self._liked)
        good = r() < 0.5
        word = _pick(r, self.lexicon["positive" if good else "negative"])
        liked = ("enjoy", "enjoys", "enjoyed") if good else ("dislike", "dislikes", "disliked")
        form = liked[2 if c.past else c.subject.index]
        be = "was" if c.past else "is"
        return f"{s} {form} the {noun.word} because it {be} {_pick(r, self._degree)} {word}."

    def _p_tool(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        tool = _pick(r, self.nouns["tool"])
        return f"{s} {verb[2 if c.past else c.subject.index]} {obj} with {self._np(r, tool, c.subject.possessive)}."

    def _p_too(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        be = c.subject.be_past if c.past else c.subject.be_now
        return f"{s} {be} too {_pick(r, self._mood)} to {verb.base} {obj}."

    def _p_eat(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        a, b = _pick(r, self._eaten), _pick(r, self.nouns["drink"])
        have = "had" if c.past else ("has" if c.subject.index else "have")
        meal = _pick(r, ("breakfast", "lunch", "dinner", "supper"))
        return f"for {meal}, {s} {have} {a.article} and some {_pick(r, b.adjectives)[0]} {b.word}."

    def _p_group(self, r: _Random, c: _Scene) -> str:
        noun = _pick(r, self.nouns["group"])
        verb, objects = _pick(r, self.transitive)
        obj = self._np(r, _pick(r, objects), "its")
        of = _pick(r, self.nouns["profession"]).plural
        return f"the {noun.word} of {of} {verb[2 if c.past else 1]} {obj}{self._tail(r, c)}."

    def _p_ask_to(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        tell = _pick(
            r,
            (
                ("ask", "asks", "asked"),
                ("tell", "tells", "told"),
                ("order", "orders", "ordered"),
                ("teach", "teaches", "taught"),
                ("allow", "allows", "allowed"),
            ),
        )
        return f"{s} {tell[2 if c.past else c.subject.index]} {self._object_of(c.other)} to {verb.base} {obj}."

    def _p_body(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        noun = _pick(r, self.nouns["body"])
        if noun.word in ("head", "back", "neck"):
            part = noun.word
        else:
            part = _pick(r, ("left ", "right ")) + noun.word
        hurt = _pick(r, (("hurt", "hurts", "hurt"), ("rub", "rubs", "rubbed"), ("injure", "injures", "injured")))
        form = hurt[2 if c.past else c.subject.index]
        if c.subject.index == 0 and c.subject.pronoun != "I":
            part = noun.plural or part
        return f"{s} {form} {c.subject.possessive} {part} {self._at(r, c)}."

    def _p_perhaps(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        verb, obj = self._act(r, c)
        form = verb[2 if c.past else c.subject.index]
        if r() < 0.6:
            return f"{_pick(r, ('perhaps', 'maybe'))} {s} {form} {obj}{self._tail(r, c)}."
        noun = _pick(r, self._things)
        form = _pick(r, self.takers[noun.word])[2 if c.past else c.subject.index]
        return f"{s} {form} {_pick(r, ('nearly', 'almost', 'about'))} {_pick(r, self._numbers[9:])} {noun.plural}."

    def _p_pair(self, r: _Random, c: _Scene) -> str:
        s = self._subject(r, c)
        form = 2 if c.past else c.subject.index
        verb, obj = self._act(r, c)
        return f"{s} {verb[form]} {obj}, and {self._other_clause(r, c)}."

    # ------------------------------------------------------------------ patterns about things and places

    def _thing(self, r: _Random, c: _Scene) -> Noun:
        if c.thing is not None and r() < 0.8:
            c.seen = True
            return c.thing
        return _pick(r, self._things)

    def _p_passive(self, r: _Random, c: _Scene) -> str:
        noun = self._thing(r, c)
        verb = _pick(r, self.takers[noun.word]).participle
        x = r()
        if x < 0.55:
            named = not c.is_animal and c.subject.again != c.subject.pronoun
            by = c.subject.again if named else c.other.again
            if by in ("I", "we", "they"):
                by = "the " + _pick(r, self.nouns["profession"]).word
            tail = f" by {by}{' ' + self._when(r, c) if r() < 0.3 else ''}"
        elif x < 0.8:
            tail = " " + self._at(r, c)
        else:
            tail = " " + self._when(r, c)
        if r() < 0.25:
            return f"the {noun.plural} {'were' if c.past else 'are'} {verb}{tail}."
        return f"{self._the(r, noun)} {'was' if c.past else 'is'} {verb}{tail}."

    def _p_relative_object(self, r: _Random, c: _Scene) -> str:
        noun = self._thing(r, c)
        s = c.subject.again if c.said == 0 or r() < 0.5 else c.subject.pronoun
        if c.is_animal:
            s, index = "we", 0
        else:
            index = c.subject.index
        form = _pick(r, self.takers[noun.word])[2 if c.past else index]
        be = "was" if c.past else "is"
        word = _pick(r, noun.adjectives)[0]
        x = r()
        if x < 0.6:
            return f"the {noun.word} that {s} {form} {be} {_pick(r, self._degree)} {word}."
        return f"the {noun.word}, which {s} {form} {self._when(r, c)}, {be} {word}."

    def _p_compare(self, r: _Random, c: _Scene) -> str:
        noun = self._thing(r, c)
        other = _pick(r, self._things)
        if other is noun:
            other = self._things[0] if noun is not self._things[0] else self._things[1]
        word, more, _ = _pick(r, self._comparable)
        be = "was" if c.past else "is"
        x = r()
        if x < 0.6:
            return f"the {noun.word} {be} {more} than the {other.word}."
        if x < 0.8:
            return f"the {noun.word} {be} as {word} as the {other.word}."
        return f"the {noun.word} {be} not as {word} as the {other.word}."

    def _p_superlative(self, r: _Random, c: _Scene) -> str:
        noun = self._thing(r, c)
        most = _pick(r, self._comparable)[2]
        s = c.subject
        have = "had" if c.past else ("has" if s.index else "have")
        who = s.again if not c.is_animal else "my cousin"
        have = ("has" if not c.past else "had") if c.is_animal else have
        return f"it {'was' if c.past else 'is'} the {most} {noun.word} that {who} {have} ever seen."

    def _p_there(self, r: _Random, c: _Scene) -> str:
        be = ("was", "were") if c.past else ("is", "are")
        noun = _pick(r, self._things) if r() < 0.6 else _pick(r, self.nouns[_pick(r, _CREATURES)])
        where = self._at(r, c)
        x = r()
        if x < 0.45:
            return f"there {be[0]} {_pick(r, noun.adjectives)[1]} {noun.word} {where}."
        if x < 0.7:
            return f"{where} there {be[1]} {_pick(r, self._numbers)} {noun.plural}."
        if x < 0.85:
            return f"there {be[1]} {_pick(r, ('many', 'some', 'no', 'several', 'a few'))} {noun.plural} {where}."
        return f"there {be[1]} more {noun.plural} than {_pick(r, self._things).plural} {where}."

    def _p_kind(self, r: _Random, c: _Scene) -> str:
        noun, kind = _pick(r, self._kinds)
        x = r()
        if x < 0.5:
            return f"{noun.article} is {'a kind of ' + kind if not kind.startswith('piece') else 'a ' + kind}."
        if x < 0.75:
            return f"{noun.plural} can be {_pick(r, noun.adjectives)[0]} or {_pick(r, noun.adjectives)[0]}."
        verb = _pick(r, self.takers.get(noun.word) or self.takers["apple"])
        return f"{_pick(r, ('people', 'children', 'visitors', 'workers'))} often {verb.base} {noun.plural}."

    def _p_weather(self, r: _Random, c: _Scene) -> str:
        x = r()
        noun = _pick(r, self._wet)
        if x < 0.45:
            verb = _pick(r, self.intransitive["weather"])
            return f"the {noun.word} {verb[2 if c.past else 1]} {self._when(r, c)}."
        if x < 0.75:
            word = _pick(r, ("cold", "warm", "wet", "windy", "cloudy", "sunny", "dry", "foggy", "mild", "stormy"))
            return f"it {'was' if c.past else 'is'} {_pick(r, self._degree)} {word} {self._at(r, c)}."
        where = self._at(r, c)
        return f"there {'was' if c.past else 'is'} {_pick(r, noun.adjectives)[0]} {noun.word} {where}."

    def _p_dialogue(self, r: _Random, c: _Scene) -> str:
        a = c.subject.again if not c.is_animal and c.subject.again != c.subject.pronoun else "the child"
        b = c.other.again if c.other.again != c.other.pronoun else "the stranger"
        verb, objects = _pick(r, self.transitive)
        noun = _pick(r, objects)
        obj = self._np(r, noun, "the")
        x = r()
        if x < 0.4:
            answer = f"Yes, I {verb.past} it" if noun.plural is None else f"Yes, I did, {_pick(r, self._time_past)}"
            return f'"Did you {verb.base} {obj}?" asked {a}. "{answer}," said {b}.'
        if x < 0.7:
            return f'"Where is the {_pick(r, self._things).word}?" asked {a}. "It is {self._at(r, c)}," said {b}.'
        answer = f"I will {verb.base} {obj} {_pick(r, self._time_next)}"
        return f'"What will you do?" asked {a}. "{answer}," answered {b}.'

    def _p_order(self, r: _Random, c: _Scene) -> str:
        verb, objects = _pick(r, self.transitive)
        obj = self._np(r, _pick(r, objects), "your")
        lead = _pick(r, ("please ", "do not ", "always ", "never ", "", "let us "))
        return f"{lead}{verb.base} {obj}{' ' + self._at(r) if r() < 0.4 else ''}."

    def _p_exclaim(self, r: _Random, c: _Scene) -> str:
        noun = self._thing(r, c)
        word = with_article(_pick(r, self.lexicon["positive"]))
        if r() < 0.5:
            return f"what {word} {noun.word}!"
        return f"how {_pick(r, noun.adjectives)[0]} the {noun.word} {'was' if c.past else 'is'}!"

    def _p_thing_is(self, r: _Random, c: _Scene) -> str:
        noun = self._thing(r, c)
        a, b = _pick(r, noun.adjectives)[0], _pick(r, noun.adjectives)[0]
        be = "was" if c.past else "is"
        x = r()
        if x < 0.35 and a != b:
            return f"the {noun.word} {be} {a} and {b}."
        if x < 0.6 and a != b:
            return f"the {noun.word} {be} {a} but not {b}."
        if x < 0.85:
            return f"{self._the(r, noun)} {be} {self._at(r, c)}."
        return f"the {noun.word} {be} {_pick(r, self._degree)} {a}."

    def _p_stood(self, r: _Random, c: _Scene) -> str:
        prepositions, place = _pick(r, self.places)
        building = _pick(r, self.nouns["building"])
        at = f"{_pick(r, prepositions[1:])} the {place.word}"
        stand = "stood" if c.past else "stands"
        if r() < 0.5:
            return f"{at} {stand} {_pick(r, building.adjectives)[1]} {building.word}."
        return f"the {building.word} {stand} {at}."

    def _p_made_of(self, r: _Random, c: _Scene) -> str:
        noun = self._thing(r, c)
        if noun.kind in ("dish", "document"):
            return f"the {noun.word} {'was' if c.past else 'is'} {_pick(r, noun.adjectives)[0]}."
        return f"the {noun.word} {'was' if c.past else 'is'} made of {_pick(r, self.nouns['material']).word}."

    def _p_thing_happens(self, r: _Random, c: _Scene) -> str:
        noun = _pick(r, self.nouns[_pick(r, ("utensil", "treasure", "furniture"))])
        verb = _pick(r, self.intransitive["thing"])[2 if c.past else 1]
        return f"{self._the(r, noun)} {verb} {self._at(r, c)}."

    def _p_plants(self, r: _Random, c: _Scene) -> str:
        if r() < 0.3:
            noun = _pick(r, self.nouns["fish"])
            verb = _pick(r, self.intransitive["fish"])
            water = _pick(r, ("river", "lake", "sea", "pond", "stream", "ocean"))
            return f"{self._the(r, noun)} {verb[2 if c.past else 1]} in the {water}."
        noun = _pick(r, self.nouns["plant"])
        verb = _pick(r, self.intransitive["plant"])
        return f"the {noun.plural} {verb[2 if c.past else 0]} {self._at(r, c)}."

    def _p_vehicle(self, r: _Random, c: _Scene) -> str:
        noun = _pick(r, self.nouns["vehicle"])
        verb = _pick(r, self.intransitive["vehicle"])
        return f"{self._the(r, noun)} {verb[2 if c.past else 1]} {self._at(r, c)}."

    def _p_virtue(self, r: _Random, c: _Scene) -> str:
        a, b = _pick(r, self.nouns["abstract"]).word, _pick(r, self.nouns["abstract"]).word
        if a == b:
            b = "luck" if a != "luck" else "hope"
        x = r()
        if x < 0.2:
            word = _pick(r, ("rare", "common", "useful", "hard to find"))
            return f"{_pick(r, self.adjectives['abstract_adj'])} {a} is {word}."
        if x < 0.4:
            return f"{a} is more important than {b}."
        return f"{a} and {b} often go together." if x < 0.7 else f"without {a} there is no {b}."

    def _p_worker(self, r: _Random, c: _Scene) -> str:
        job = _pick(r, self.nouns["profession"])
        noun = _pick(r, self._things)
        verb = _pick(r, self.takers[noun.word])
        if r() < 0.5:
            return f"a good {job.word} knows how to {verb.base} {noun.article}."
        return f"most {job.plural} {verb.base} {noun.plural} {_pick(r, self._time_now)}."

    # ------------------------------------------------------------------ sentences and documents

    def _scene(self, r: _Random) -> _Scene:
        is_animal = r() < 0.15
        subject = _pick(r, self._animals if is_animal else self._people)
        other = _pick(r, self._people)
        while other.again == subject.again or other.pronoun in ("I", "we"):
            other = _pick(r, self._people)
        return _Scene(subject, other, is_animal, r() < 0.7)

    def sentence(self, rng: random.Random) -> str:
        """Make one sentence (now and then a question with its answer).

        Args:
            rng: Source of all choices.

        Returns:
            Text that starts with a capital or a quotation mark and ends with punctuation.
        """
        r = rng.random
        c = self._scene(r)
        if r() < 0.28:
            patterns = self._general
        else:
            patterns = self._own if c.is_animal else self._person
        text = patterns[int(r() * len(patterns))](r, c)
        if text[0] == '"':
            return text
        return text[0].upper() + text[1:]

    def document(self, rng: random.Random, sentences: int | None = None) -> str:
        """Make several sentences about one subject, one thing and one place.

        Args:
            rng: Source of all choices.
            sentences: How many; between 3 and 8 by default.

        Returns:
            The sentences, joined by spaces.
        """
        r = rng.random
        count = 3 + int(r() * 6) if sentences is None else sentences
        c = self._scene(r)
        c.focus = 0.55
        c.thing = _pick(r, self._things)
        c.place = self._at(r)
        own = self._own if c.is_animal else self._person
        parts: list[str] = []
        for i in range(count):
            x = r()
            if i == 0 or x < 0.68:
                # The first sentence has to name the subject: the patterns that may leave it out come later.
                patterns = self._own[:16] if i == 0 else own
            elif x < 0.86:
                patterns = self._thing_patterns
            elif x < 0.95:
                patterns = self._scene_patterns
            else:
                patterns = self._general
            text = patterns[int(r() * len(patterns))](r, c)
            if i and r() < 0.12 and text[0] != '"' and text[-1] == "." and patterns is own:
                text = f"{_pick(r, self._links)}, {text}"
            elif r() < 0.04 and text[0] != '"' and text[-1] == ".":
                text = f"{_pick(r, self._comment)}, {text}"
            parts.append(text if text[0] == '"' else text[0].upper() + text[1:])
        return " ".join(parts)


_ABSOLUTE = frozenset(
    [
        "broken",
        "useless",
        "round",
        "square",
        "empty",
        "hollow",
        "bent",
        "worn",
        "handmade",
        "giant",
        "massive",
        "miniature",
        "enormous",
        "huge",
        "tiny",
        "little",
        "circular",
        "vacant",
        "shattered",
        "worthless",
        "ordinary",
        "gigantic",
        "blunt",
    ]
)
_SHORT_COMPARED = frozenset(
    [
        "big",
        "small",
        "large",
        "tall",
        "short",
        "long",
        "wide",
        "narrow",
        "thick",
        "thin",
        "heavy",
        "light",
        "cheap",
        "clean",
        "dirty",
        "shiny",
        "dusty",
        "sturdy",
        "simple",
        "plain",
        "rusty",
        "smooth",
        "rough",
        "sharp",
        "slim",
        "broad",
        "handy",
        "filthy",
    ]
)
