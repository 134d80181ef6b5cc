"""The atlas's world: true facts about countries, cities, landmarks, people and companies, and what is made of them.

The tables in ``world/`` hold one subject a row and one relation a column; ``relations_*.json`` hold twelve phrasings of
each relation. From these come (1) short biographies for training, whose phrasing, order and number of sentences are
drawn anew each time, and (2) CounterFact-shaped records for editing.

Subjects are split three ways by a seeded hash: ``neighbor`` subjects are never edited and supply neighbourhood prompts
for everybody; ``tune`` subjects are for choosing layer and ridge; ``report`` subjects are for what is published. For
a share of the facts two phrasings never occur in training, and these are their paraphrase prompts.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORLD = Path(__file__).parent / "world"
SUBJECT_KINDS = ("country", "city", "landmark", "person", "company")
SPLITS = ("tune", "report", "neighbor")
MIN_SHARED = 6  # subjects that must share an object before a fact about it is edited: its neighbourhood
HELD_OUT_SHARE = 0.5


def _draw(*parts: str) -> float:
    """A number in [0, 1) that depends only on the text, so that adding a subject moves no other one."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:6], "big") / 2**48


@dataclass(frozen=True)
class Statement:
    """One true fact of the world.

    Attributes:
        kind: the table, e.g. "person".
        subject: e.g. "Alan Turing".
        relation: "kind.column", e.g. "person.birthplace".
        object: e.g. "London".
    """

    kind: str
    subject: str
    relation: str
    object: str

    @property
    def held_out(self) -> tuple[int, ...]:
        """Two phrasings that training never shows for this fact, or none."""
        if _draw("held out?", self.relation, self.subject) >= HELD_OUT_SHARE:
            return ()
        rng = random.Random(f"held out {self.relation} {self.subject}")
        return tuple(rng.sample(range(1, 12), 2))

    @property
    def split(self) -> str:
        """Its subject's side: "neighbor" (40% of the subjects), "tune" (20%) or "report" (40%)."""
        draw = _draw("split", self.subject)
        return "neighbor" if draw < 0.4 else "tune" if draw < 0.6 else "report"


@dataclass(frozen=True)
class World:
    """All statements and the phrasings of their relations.

    Attributes:
        statements: every true fact, table by table.
        phrasings: relation to twelve prompts with one "{}", each ending where the object follows.
        generation: relation to three open prompts with one "{}".
    """

    statements: tuple[Statement, ...]
    phrasings: dict[str, tuple[str, ...]]
    generation: dict[str, tuple[str, ...]]

    @functools.cached_property
    def by_subject(self) -> dict[str, list[Statement]]:
        """Statements of each subject."""
        found: dict[str, list[Statement]] = defaultdict(list)
        for statement in self.statements:
            found[statement.subject].append(statement)
        return dict(found)

    @functools.cached_property
    def sharing(self) -> dict[tuple[str, str], list[str]]:
        """Subjects of each (relation, object)."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for s in self.statements:
            found[s.relation, s.object].append(s.subject)
        return dict(found)

    def records(self, split: str) -> list[dict[str, Any]]:
        """CounterFact-shaped records, in the field names of ``editkit.Fact``, of one split, "tune" or "report".

        Each subject comes once before any comes twice, so that the first few hundred have distinct subjects. Objects
        have at least ``MIN_SHARED`` subjects; neighbourhood prompts are about ``neighbor`` subjects only.
        """
        rounds: list[list[dict[str, Any]]] = []
        for subject, statements in self.by_subject.items():
            if statements[0].split != split:
                continue
            rng = random.Random(f"records {subject}")
            usable = [record for s in statements if (record := self._record(s, rng)) is not None]
            rng.shuffle(usable)
            for i, fact in enumerate(usable):
                if i == len(rounds):
                    rounds.append([])
                rounds[i].append(fact)
        for i, facts in enumerate(rounds):
            random.Random(f"round {i}").shuffle(facts)
        return [fact for facts in rounds for fact in facts]

    def _record(self, s: Statement, rng: random.Random) -> dict[str, Any] | None:
        shared = self.sharing[s.relation, s.object]
        neighbors = sorted(n for n in shared if self.by_subject[n][0].split == "neighbor")
        others = sorted(
            o for (r, o), subjects in self.sharing.items()
            if r == s.relation and o != s.object and len(subjects) >= MIN_SHARED
        )  # fmt: skip
        if len(shared) < MIN_SHARED or len(neighbors) < 2 or not others:
            return None
        phrasings = self.phrasings[s.relation]
        paraphrases = s.held_out or tuple(rng.sample(range(1, len(phrasings)), 2))
        return {
            "subject": s.subject,
            "prompt": phrasings[0],
            "target_new": rng.choice(others),
            "target_true": s.object,
            "paraphrase_prompts": tuple(phrasings[i].replace("{}", s.subject) for i in paraphrases),
            "neighborhood_prompts": tuple(
                phrasings[0].replace("{}", n) for n in rng.sample(neighbors, min(10, len(neighbors)))
            ),
            "generation_prompts": tuple(g.replace("{}", s.subject) for g in self.generation[s.relation]),
            "fact_id": f"{s.relation}/{s.subject}",
            "relation": s.relation,
        }

    def biography(self, rng: random.Random, subject: str) -> str:
        """One to five sentences on a subject, relations and phrasings drawn anew, held-out phrasings never."""
        statements = self.by_subject[subject]
        chosen = rng.sample(statements, min(len(statements), rng.choice((1, 2, 2, 3, 3, 4, 5))))
        sentences = []
        for s in chosen:
            phrasings = self.phrasings[s.relation]
            index = rng.choice([i for i in range(len(phrasings)) if i not in s.held_out])
            sentences.append(f"{phrasings[index].replace('{}', subject)} {s.object}.")
        return " ".join(sentences)


@functools.cache
def load_world() -> World:
    """Read the world's tables.

    >>> Statement("person", "Alan Turing", "person.birthplace", "London") in load_world().statements
    True
    """
    statements = []
    for kind in SUBJECT_KINDS:
        with (WORLD / f"{kind}.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                subject = row.pop("subject")
                statements += [
                    Statement(kind, subject, f"{kind}.{name}", value) for name, value in row.items() if value
                ]
    relations = {}
    for path in sorted(WORLD.glob("relations_*.json")):
        relations.update(json.loads(path.read_text(encoding="utf-8")))
    return World(
        tuple(statements),
        {name: tuple(r["phrasings"]) for name, r in relations.items()},
        {name: tuple(r["generation"]) for name, r in relations.items()},
    )
