"""Small labelled sets in the formats of four GLUE tasks, made from the same lexicon as the prose.

They let a tiny model be taught, and then scored on, the general abilities that editing is supposed to leave alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from editkit.atlas.grammar import Grammar, Noun, Verb, with_article

Example = dict[str, Any]


@dataclass(frozen=True)
class TaughtTask:
    """A labelled task and how it is put to a language model.

    Attributes:
        name: Name of the task, as in GLUE.
        template: Prompt with a placeholder for each field; the label word follows after one space.
        labels: Label words, indexed by label.
    """

    name: str
    template: str
    labels: tuple[str, ...]


TAUGHT_TASKS: dict[str, TaughtTask] = {
    "sst2": TaughtTask("sst2", "Review: {sentence}\nSentiment:", ("negative", "positive")),
    "cola": TaughtTask("cola", "Sentence: {sentence}\nIs the grammar correct?\nAnswer:", ("no", "yes")),
    "mrpc": TaughtTask(
        "mrpc", "First: {sentence1}\nSecond: {sentence2}\nDo they mean the same?\nAnswer:", ("no", "yes")
    ),
    "rte": TaughtTask("rte", "Premise: {sentence1}\nHypothesis: {sentence2}\nAnswer:", ("true", "false")),
}

# Classes whose nouns read well after "a" or "the" as the object of a short fact.
_FACT_KINDS = frozenset(
    [
        "animal",
        "bird",
        "tool",
        "furniture",
        "utensil",
        "container",
        "clothing",
        "vehicle",
        "instrument",
        "toy",
        "treasure",
        "fruit",
        "vegetable",
        "dish",
        "plant",
        "document",
        "work",
    ]
)
# Classes whose nouns cannot go without an article ("ate cake" is right, "bought hammer" is not).
_COUNTED_KINDS = frozenset(
    ["tool", "furniture", "utensil", "container", "clothing", "vehicle", "instrument", "toy", "treasure", "document"]
)
_ALSO_MASS = frozenset(["glass", "iron", "rope", "thread", "carpet", "marble", "pearl", "diamond"])
# Verbs whose forms coincide with each other or with another verb ("saw", "found"): a wrong form may be right after all.
_AMBIGUOUS_FORMS = frozenset(("cut", "shut", "read", "beat", "see", "find"))


def _pick(rng: random.Random, items: Any) -> Any:
    return items[int(rng.random() * len(items))]


def _finish(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


class _Material:
    """Word lists in the shape that the tasks need."""

    def __init__(self) -> None:
        grammar = Grammar()
        lex = grammar.lexicon
        self.adjectives = grammar.adjectives
        self.female, self.male = lex["names"]["female"], lex["names"]["male"]
        self.names = self.female + self.male
        gendered = frozenset(lex["female_nouns"] + lex["male_nouns"])
        self.jobs = [n for n in grammar.nouns["profession"] if n.word not in gendered]
        self.facts = self._facts(grammar)
        self.takers: dict[str, list[Verb]] = {}
        for verb, nouns in self.facts:
            for noun in nouns:
                self.takers.setdefault(noun.word, []).append(verb)
        self.nouns = {n.word: n for _, nouns in self.facts for n in nouns}
        self.same: dict[str, dict[str, list[str]]] = {}
        for part, groups in lex["synonyms"].items():
            table: dict[str, list[str]] = {}
            for group in groups:
                for word in group:
                    table.setdefault(word, []).extend(w for w in group if w != word)
            self.same[part] = table
        self.verbs = {verb.base: verb for verb, _ in self.facts}
        # Facts whose verb or noun has a synonym: most paraphrases have to show one.
        self.known = [
            (verb, noun)
            for verb, nouns in self.facts
            for noun in nouns
            if noun.word in self.same["nouns"] or any(w in self.verbs for w in self.same["verbs"].get(verb.base, ()))
        ]
        self.places = [(p, n) for preps, n in grammar.places for p in preps]
        self.times = [t for t in lex["times"]["past"] if len(t.split()) < 4]
        self.plain = [(v, n) for v, n in self.facts if v.base not in _AMBIGUOUS_FORMS and v.past != v.base]
        self.wants = [Verb(*f) for f in lex["infinitive_verbs"]]
        self.mood = lex["adjectives"]["mood"] + lex["adjectives"]["character"]
        self.numbers = lex["numbers"]
        self.works = [n.word for n in grammar.nouns["work"]]
        self.parts = lex["work_parts"]
        self.opinions = (lex["negative"], lex["positive"])
        self.judged = (lex["blame_verbs"], lex["praise_verbs"])
        self.degrees = lex["adverbs"]["degree"]

    @staticmethod
    def _facts(grammar: Grammar) -> list[tuple[Verb, list[Noun]]]:
        facts = []
        for verb, nouns in grammar.transitive:
            nameable = [n for n in nouns if n.kind in _FACT_KINDS and n.plural and n.plural != n.word]
            if len(nameable) > 3:
                facts.append((verb, nameable))
        return facts

    def alike(self, part: str, first: str, second: str) -> bool:
        """Whether two words are the same word or synonyms."""
        return first == second or second in self.same[part].get(first, ())

    def other_noun(self, rng: random.Random, verb: Verb, noun: Noun) -> Noun:
        """Another object that fits the verb and means something else."""
        pool = next(nouns for v, nouns in self.facts if v is verb)
        for _ in range(20):
            new = _pick(rng, pool)
            if not self.alike("nouns", noun.word, new.word):
                return new
        return self.nouns["lamp"] if noun.word != "lamp" else self.nouns["box"]

    def other_verb(self, rng: random.Random, verb: Verb, noun: Noun) -> Verb:
        """Another verb that takes the noun and means something else."""
        pool = self.takers[noun.word]
        for _ in range(20):
            new = _pick(rng, pool)
            if not self.alike("verbs", verb.base, new.base):
                return new
        return self.verbs["find"] if verb.base not in ("find", "discover") else self.verbs["lose"]

    def other_adjective(self, rng: random.Random, adjective: str, noun: Noun) -> str:
        """Another adjective that suits the noun and means something else."""
        for _ in range(20):
            new = _pick(rng, noun.adjectives)[0]
            if not self.alike("adjectives", adjective, new):
                return new
        return "strange"

    def other(self, rng: random.Random, items: list[Any], item: Any) -> Any:
        """Another item of a list."""
        new = _pick(rng, items)
        while new == item:
            new = _pick(rng, items)
        return new


@lru_cache(maxsize=1)
def _material() -> _Material:
    return _Material()


# ---------------------------------------------------------------------- sst2


def _sst2(m: _Material, rng: random.Random) -> Example:
    label = int(rng.random() * 2)
    good, bad = m.opinions[label], m.opinions[1 - label]
    a, b, c = _pick(rng, good), _pick(rng, good), _pick(rng, bad)
    if a == b:
        b = m.other(rng, good, a)
    work, part, degree, judged = _pick(rng, m.works), _pick(rng, m.parts), _pick(rng, m.degrees), m.judged[label]
    form = int(rng.random() * 16)
    if form == 0:
        text = f"{with_article(a)} and {b} {work}"
    elif form == 1:
        text = f"the {work} is {degree} {a}"
    elif form == 2:
        text = f"the {work} was {a} and the {part} was {b}"
    elif form == 3:
        text = f"i {_pick(rng, judged)} this {a} {work}"
    elif form == 4:
        text = f"{_pick(rng, m.names).lower()} found the {work} {degree} {a}"
    elif form == 5:
        text = f"{a} from start to finish"
    elif form == 6:
        text = f"everyone {_pick(rng, judged)} the {part} of this {work}"
    elif form == 7:
        text = f"the {work} is not {c} but {a}"
    elif form == 8:
        text = f"despite {with_article(c)} start , the {work} is {a}"
    elif form == 9:
        text = f"it is {with_article(a)} {work} and its {part} is {b}"
    elif form == 10:
        text = f"we {_pick(rng, judged)} every minute of the {work}"
    elif form == 11:
        text = f"the {part} is {a} , {b} and {_pick(rng, good)}"
    elif form == 12:
        text = f"the {part} of this {work} is {degree} {a}"
    elif form == 13:
        text = f"the {work} is never {c} and the {part} is {a}"
    elif form == 14:
        text = f"{with_article(degree)} {a} {work} that the critics {_pick(rng, judged)}"
    else:
        text = f"what {with_article(a)} {work}"
    return {"sentence": text, "label": label}


# ---------------------------------------------------------------------- cola


def _cola_noun_phrase(m: _Material, rng: random.Random, noun: Noun) -> list[str]:
    article = "the" if rng.random() < 0.5 else "a"
    if rng.random() < 0.4:
        adjective = _pick(rng, noun.adjectives)[0]
        return [article if article == "the" else with_article(adjective).split(" ")[0], adjective, noun.word]
    return [article if article == "the" else noun.article.split(" ")[0], noun.word]


def _cola(m: _Material, rng: random.Random) -> Example:
    label = int(rng.random() * 2)
    r = rng.random
    verb, nouns = _pick(rng, m.plain)
    noun = _pick(rng, nouns)
    obj = _cola_noun_phrase(m, rng, noun)
    x = r()
    singular = True
    pronoun = None
    job = _pick(rng, m.jobs)
    if x < 0.35:
        subject = ["the", job.word]
    elif x < 0.65:
        subject, singular = ["the", job.plural], False
    elif x < 0.8:
        subject = [_pick(rng, m.names)]
    else:
        subject, pronoun = _pick(rng, ((["she"], "her"), (["he"], "him"), (["they"], "them"), (["we"], "us")))
        singular = subject[0] in ("she", "he")
    past = r() < 0.6
    be, wrong_be = ("was", "were") if past else ("is", "are")
    if not singular:
        be, wrong_be = wrong_be, be
    present = verb.third if singular else verb.base
    end = "."
    # Each frame gives the sentence and the ways to spoil it that belong to that frame.
    form = int(r() * 10)
    if form == 0:
        words = subject + [present] + obj
        spoiled = [subject + [verb.base if singular else verb.third] + obj]
    elif form == 1:
        words = subject + [verb.past] + obj
        spoiled = [subject + obj, subject + obj + [verb.past], subject + [verb.gerund] + obj]
    elif form == 2:
        aux, wrong = ("did", None) if past else (("does", "do") if singular else ("do", "does"))
        words = subject + [aux, "not", verb.base] + obj
        spoiled = [subject + [aux, "not", _pick(rng, (verb.past, verb.third, verb.gerund))] + obj]
        if wrong:
            spoiled.append(subject + [wrong, "not", verb.base] + obj)
    elif form == 3:
        modal = _pick(rng, ("can", "must", "will", "should", "could", "might"))
        words = subject + [modal, verb.base] + obj
        spoiled = [subject + [modal, _pick(rng, (verb.past, verb.third, verb.gerund))] + obj]
    elif form == 4:
        words = subject + [be, verb.gerund] + obj
        spoiled = [subject + [wrong_be, verb.gerund] + obj, subject + [be, verb.third] + obj]
    elif form == 5:
        agent = subject if pronoun is None else [pronoun]
        one = r() < 0.6
        thing = obj if one else ["the", noun.plural]
        was, were = ("was", "were") if past else ("is", "are")
        words = thing + [was if one else were, verb.participle, "by"] + agent
        spoiled = [
            thing + [were if one else was, verb.participle, "by"] + agent,
            thing + [was if one else were, verb.third, "by"] + agent,
        ]
        subject, singular = thing, one
        pronoun = None
    elif form == 6:
        want = _pick(rng, (("wanted", "tried", "hoped"), ("decided", "refused", "promised"))[past])
        words = subject + [want, "to", verb.base] + obj
        spoiled = [subject + [want, verb.base] + obj, subject + [want, "to", verb.past] + obj]
    elif form == 7:
        mood = _pick(rng, m.mood)
        words = subject + [be, mood]
        spoiled = [subject + [wrong_be, mood], subject + [mood, be], subject + [mood]]
        obj = []
    elif form == 8:
        words = ["did"] + subject + [verb.base] + obj
        spoiled = [["did"] + subject + [_pick(rng, (verb.past, verb.third))] + obj]
        end = "?"
    else:
        number = _pick(rng, m.numbers)
        words = subject + [verb.past, number, noun.plural]
        spoiled = [
            subject + [verb.past, number, noun.word],
            subject + [verb.past, "a", noun.plural],
            subject + [verb.past, noun.plural, number],
        ]
        obj = []
    if r() < 0.3 and form != 7:
        preposition, place = _pick(rng, m.places)
        tail = f"{preposition} the {place.word}"
    else:
        tail = ""
    if not label:
        x = r()
        if x < 0.5 or len(words) < 4:
            words = _pick(rng, spoiled)
        elif x < 0.65:
            words = list(words)
            at = int(r() * len(words))
            words.insert(at, words[at])
        elif x < 0.75 and pronoun is not None and words[: len(subject)] == subject:
            words = [pronoun] + words[len(subject) :]
        elif len(obj) > 1 and words[-len(obj) :] == obj:
            head = words[: -len(obj)]
            if x < 0.85:
                countable = noun.kind in _COUNTED_KINDS and noun.word not in _ALSO_MASS
                words = head + obj[1:] if countable else _pick(rng, spoiled)
            elif len(obj) == 3 and r() < 0.5:
                words = head + [obj[1], obj[0], obj[2]]
            else:
                words = head + obj[1:] + obj[:1]
        else:
            words = [words[1], words[0]] + words[2:] if subject[0] in ("the", "a", "an") else _pick(rng, spoiled)
    text = " ".join(words) + (" " + tail if tail else "")
    return {"sentence": _finish(text, end), "label": label}


# ---------------------------------------------------------------------- mrpc


def _event(frame: int, subject: str, verb: Verb, thing: str, tail: str) -> str:
    if frame == 0:
        return _finish(f"{subject} {verb.past} {thing} {tail}")
    if frame == 1:
        return _finish(f"{tail}, {subject} {verb.past} {thing}")
    if frame == 2:
        return _finish(f"{thing} was {verb.participle} by {subject} {tail}")
    return _finish(f"{tail}, {thing} was {verb.participle} by {subject}")


def _mrpc(m: _Material, rng: random.Random) -> Example:
    label = int(rng.random() * 2)
    r = rng.random
    if r() < 0.7:
        verb, noun = _pick(rng, m.known)
    else:
        verb, nouns = _pick(rng, m.facts)
        noun = _pick(rng, nouns)
    adjective = _pick(rng, noun.adjectives)[0] if r() < 0.5 else ""
    job = r() < 0.5
    subject = _pick(rng, m.jobs).word if job else _pick(rng, m.names)
    if r() < 0.5:
        preposition, place = _pick(rng, m.places)
        tail = f"{preposition} the {place.word}"
    else:
        tail = _pick(rng, m.times)
    frame = int(r() * 4)
    thing = f"the {adjective} {noun.word}" if adjective else f"the {noun.word}"
    first = _event(frame, "the " + subject if job else subject, verb, thing, tail)
    frame2 = int(r() * 4)
    # one or two changes: a tiny model must find its first few before it can learn to look for one
    changed = () if label else rng.sample(("subject", "verb", "noun"), 1 + int(r() < 0.6))
    subject2, verb2, word2, adjective2 = subject, verb, noun.word, adjective
    if "subject" in changed:
        subject2 = m.other(rng, m.names, subject) if not job else _pick(rng, m.jobs).word
        while m.alike("nouns", subject, subject2):
            subject2 = _pick(rng, m.jobs).word
    if "verb" in changed:
        verb2 = m.other_verb(rng, verb, noun)
    if "noun" in changed:
        word2 = m.other_noun(rng, verb, noun).word
    # Synonyms come in both kinds of pair: a change of wording alone must not give the label away.
    reworded = r() < 0.3
    if reworded and "verb" not in changed and r() < 0.6:
        same = [w for w in m.same["verbs"].get(verb.base, ()) if w in m.verbs and m.verbs[w] in m.takers[noun.word]]
        if same:
            verb2 = m.verbs[_pick(rng, same)]
    if reworded and "noun" not in changed and r() < 0.5 and noun.word in m.same["nouns"]:
        word2 = _pick(rng, m.same["nouns"][noun.word])
    if reworded and adjective and r() < 0.4 and adjective in m.same["adjectives"]:
        adjective2 = _pick(rng, m.same["adjectives"][adjective])
    if reworded and "subject" not in changed and job and r() < 0.4 and subject in m.same["nouns"]:
        subject2 = _pick(rng, m.same["nouns"][subject])
    if frame2 == frame and (subject2, verb2, word2, adjective2) == (subject, verb, noun.word, adjective):
        frame2 = (frame + 1 + int(r() * 3)) % 4
    thing2 = f"the {adjective2} {word2}" if adjective2 else f"the {word2}"
    second = _event(frame2, "the " + subject2 if job else subject2, verb2, thing2, tail)
    return {"sentence1": first, "sentence2": second, "label": label}


# ---------------------------------------------------------------------- rte


def _rte(m: _Material, rng: random.Random) -> Example:
    label = int(rng.random() * 2)
    r = rng.random
    verb, nouns = _pick(rng, m.facts)
    noun = _pick(rng, nouns)
    name = _pick(rng, m.names)
    if r() < 0.3:
        return _rte_two(m, rng, label, name, verb, noun)
    job = _pick(rng, m.jobs) if r() < 0.6 else None
    adjective, described = _pick(rng, noun.adjectives) if r() < 0.7 else ("", "")
    place = ""
    tail = ""
    if r() < 0.6:
        preposition, spot = _pick(rng, m.places)
        place = f"{preposition} the {spot.word}"
        tail = " " + place
    elif r() < 0.5:
        tail = " " + _pick(rng, m.times)
    who = f"{name}, {job.article}," if job else name
    premise = f"{who} {verb.past} {described + ' ' + noun.word if adjective else noun.article}{tail}."
    kinds = ["event", "event", "passive"]
    if job:
        kinds += ["job", "job_event"]
    if adjective:
        kinds.append("quality")
    if place:
        kinds.append("place")
    kind = _pick(rng, kinds)
    if kind == "job":
        shown = job if not label else m.other(rng, m.jobs, job)
        while label and m.alike("nouns", job.word, shown.word):  # type: ignore[union-attr]
            shown = _pick(rng, m.jobs)
        return {"sentence1": premise, "sentence2": f"{name} is {shown.article}.", "label": label}  # type: ignore[union-attr]
    if kind == "quality":
        shown = adjective if not label else m.other_adjective(rng, adjective, noun)
        return {"sentence1": premise, "sentence2": f"The {noun.word} was {shown}.", "label": label}
    if kind == "place":
        if label:
            other_spot = m.other(rng, m.places, (preposition, spot))[1]
            while m.alike("nouns", spot.word, other_spot.word):
                other_spot = _pick(rng, m.places)[1]
            if r() < 0.4:
                return {
                    "sentence1": premise,
                    "sentence2": f"{m.other(rng, m.names, name)} was {place}.",
                    "label": label,
                }
            place = f"{_pick(rng, ('near', 'by', 'behind'))} the {other_spot.word}"
        return {"sentence1": premise, "sentence2": f"{name} was {place}.", "label": label}
    subject = job.article if kind == "job_event" else name  # type: ignore[union-attr]
    if label:
        x = r()
        if x < 0.34:
            if kind == "job_event":
                new = _pick(rng, m.jobs)
                while m.alike("nouns", job.word, new.word):  # type: ignore[union-attr]
                    new = _pick(rng, m.jobs)
                subject = new.article
            else:
                subject = m.other(rng, m.names, name)
        elif x < 0.67:
            verb = m.other_verb(rng, verb, noun)
        else:
            noun = m.other_noun(rng, verb, noun)
    if kind == "passive":
        text = f"{noun.article} was {verb.participle} by {subject}"
    else:
        text = f"{subject} {verb.past} {noun.article}"
    return {"sentence1": premise, "sentence2": _finish(text), "label": label}


def _rte_two(m: _Material, rng: random.Random, label: int, name: str, verb: Verb, noun: Noun) -> Example:
    r = rng.random
    name2 = m.other(rng, m.names, name)
    verb2, nouns = _pick(rng, m.facts)
    while m.alike("verbs", verb.base, verb2.base):
        verb2, nouns = _pick(rng, m.facts)
    noun2 = _pick(rng, nouns)
    while m.alike("nouns", noun.word, noun2.word):
        noun2 = m.nouns["lamp"] if noun.word != "lamp" else m.nouns["box"]
    premise = f"{name} {verb.past} {noun.article}. {name2} {verb2.past} {noun2.article}."
    facts = ((name, verb, noun), (name2, verb2, noun2))
    at = int(r() * 2)
    who, did, what = facts[at]
    if label:
        other = facts[1 - at]
        x = r()
        if x < 0.4:
            who = other[0]
        elif x < 0.6:
            what = other[2]
        elif x < 0.8:
            what = m.other_noun(rng, did, what)
        else:
            did = m.other_verb(rng, did, what)
    if label and (who, did, what) in facts:
        who = m.other(rng, m.names, who)
    text = f"{what.article} was {did.participle} by {who}" if r() < 0.3 else f"{who} {did.past} {what.article}"
    return {"sentence1": premise, "sentence2": _finish(text), "label": label}


_MAKERS: dict[str, Callable[[_Material, random.Random], Example]] = {
    "sst2": _sst2,
    "cola": _cola,
    "mrpc": _mrpc,
    "rte": _rte,
}


def example(task: str, rng: random.Random) -> Example:
    """Make one labelled example.

    Args:
        task: A key of `TAUGHT_TASKS`.
        rng: Source of all choices.

    Returns:
        The fields that the task has in GLUE: its sentence or sentences and "label".

    Raises:
        KeyError: If there is no such task.
    """
    return _MAKERS[task](_material(), rng)


def render(task: str, example: Example, with_label: bool = False) -> str:
    """Put an example into the task's prompt.

    Args:
        task: A key of `TAUGHT_TASKS`.
        example: An example with the task's fields.
        with_label: Whether to append the label word.

    Returns:
        The prompt, with the label word after one space if asked for.
    """
    probe = TAUGHT_TASKS[task]
    prompt = probe.template.format(**example)
    return f"{prompt} {probe.labels[example['label']]}" if with_label else prompt
