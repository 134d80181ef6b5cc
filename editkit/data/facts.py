"""Facts to edit, and readers of the formats that they come in.

A record is one JSON object or CSV row. Four formats are known, told apart by their fields. Other fields are ignored;
those that look like known ones are named in a warning.

- **Flat**, editkit's own: the field names of :class:`Fact`, of which ``paraphrase_prompts`` may be ``paraphrases`` and
  ``neighborhood_prompts`` ``neighbors``. In CSV, lists of prompts hold texts separated by ``|``, and a blank cell is an
  absent field::

      {"subject": "Lyon", "prompt": "{} lies in", "target_new": "Peru", "target_true": "France"}

- **ROME / CounterFact**: ``requested_rewrite`` holds ``subject``, ``prompt``, ``target_new: {"str": …}``,
  ``target_true: {"str": …}`` and ``relation_id``; beside it ``case_id`` and the lists of prompts.
- **EasyEdit**: flat, with ``ground_truth``, ``rephrase_prompt``, ``locality_prompt`` and ``locality_ground_truth``.
  The neighborhood score asks whether ``target_true`` still wins, so a locality prompt whose
  ``locality_ground_truth`` is another answer than ``ground_truth`` is an *unrelated* prompt, of which only the
  accuracy of its own answer is measured.
- **zsRE** as MEND's files have it: ``subject``, ``src`` (the question), ``rephrase``, ``answers``, ``loc`` and
  ``loc_ans`` (an unrelated question and its answer). The first of ``answers`` is written, as in the evaluations of
  ROME, MEMIT and EMMET; or, where ``zsre_target`` is "alt", the alternative ``alt``, as in those of MEND and EasyEdit,
  with the first of ``answers`` for ``target_true``.

A prompt has one ``{}`` where the subject goes. One without is accepted as spelled out when it contains the subject:
its first occurrence as a word of its own (else its first occurrence) becomes the ``{}``.

A file is ``.json`` (a list of records), ``.jsonl`` (a record a line) or ``.csv`` (with a header), in UTF-8; with any
other extension the content decides. Messages count records from 1.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editkit.data.fact_fields import (
    CSV_LISTS,
    PROMPT_LISTS,
    REQUIRED,
    ZsreTarget,
    aliases,
    is_field,
    meant_field,
    unread_fields,
)
from editkit.utils.errors import InputError, field_error, shorten

INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Zs"}  # Unicode's categories of characters that nobody sees
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz")
_OTHERS = ("neighborhood_prompts", "unrelated_prompts")  # prompts about other subjects


@dataclass(frozen=True)
class Fact:
    """One fact to write into a model.

    Args:
        subject: What the fact is about; spaces around it are dropped.
        prompt: Text with exactly one ``{}`` where the subject goes. Like every prompt, it loses trailing spaces: the
            target brings its own.
        target_new: The continuation to write, stored without spaces around it.
        target_true: The continuation that was true before; the scores compare against it.
        paraphrase_prompts: Other wordings, in full; a ``{}`` in them is filled with the subject.
        neighborhood_prompts: Prompts about other subjects for which ``target_true`` should stay the answer.
        generation_prompts: Prompts to generate from; a ``{}`` in them is filled with the subject.
        unrelated_prompts: Prompts about other things, each with an answer of its own that editing should leave alone.
        unrelated_answers: Their answers, in the same order.
        reference_texts: Texts about ``target_new`` that generated text should resemble (the reference score).
        fact_id: Stable id. Readers fill it from the record, else with the record's 0-based position.
        relation: Name of the relation, such as ``P103``.

    Raises:
        InputError: if a field is of the wrong type or empty, or the prompt has not exactly one ``{}``.

    Example:
        >>> fact = Fact("Lyon", "{} lies in", " Peru")
        >>> fact.text(), fact.text("Yes. {}"), fact.target_new
        ('Lyon lies in', 'Yes. Lyon lies in', 'Peru')
    """

    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    unrelated_prompts: tuple[str, ...] = ()
    unrelated_answers: tuple[str, ...] = ()
    reference_texts: tuple[str, ...] = ()
    fact_id: str = ""
    relation: str | None = None

    def __post_init__(self) -> None:
        for name, value in _clean(vars(self), {}).items():
            object.__setattr__(self, name, value)

    def text(self, template: str = "{}") -> str:
        """The prompt with the subject filled in, inside a context template.

        Args:
            template: Text with exactly one ``{}`` where the prompt goes. Other braces stand for themselves.

        Raises:
            InputError: if the template has not exactly one ``{}``.
        """
        if template.count("{}") != 1:
            raise field_error("template", "a text with exactly one {}", template, "write {} where the prompt goes")
        return template.replace("{}", self.prompt.replace("{}", self.subject))

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        position: int = 0,
        source: str = "facts",
        zsre_target: ZsreTarget = "answers",
    ) -> Fact:
        """Read one record of any format in the module's docstring.

        Args:
            record: The record.
            position: Its 0-based position, which is its id when it names none.
            source: What messages call the place it came from.
            zsre_target: Which of a zsRE record's answers is written: "answers" (the first of them) or "alt".

        Raises:
            InputError: naming the source, the record (from 1), the field as the record calls it, and the remedy.
        """
        try:
            values = _clean(*_read_fields(record, zsre_target))
        except InputError as error:
            raise InputError(f"{source}, record {position + 1}: {error}") from None
        return cls(**{**values, "fact_id": values["fact_id"] or str(position)})


def load_facts(path: str | Path, zsre_target: ZsreTarget = "answers") -> list[Fact]:
    """Read a file of facts.

    Args:
        path: A ``.json``, ``.jsonl`` or ``.csv`` file, see the module's docstring.
        zsre_target: Which of a zsRE record's answers is written: "answers" (the first of them) or "alt". A record whose
            ``alt`` is empty is left out then.

    Returns:
        At least one fact, in the file's order, with distinct ids. Warns once if records have ``target_new`` equal to
        ``target_true``, and once if they have fields that look like known ones and are not read.

    Raises:
        InputError: if the file cannot be read or a record is bad; names the file, the record, the line and the field.
    """
    source = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        came = getattr(error, "strerror", None) or error
        remedy = "unpack it" if Path(path).suffix.lower() in PACKED else "check the path"
        raise InputError(f"{source}: expected a file of facts in UTF-8, got {came}; {remedy}") from None
    readers = {".json": _json_records, ".jsonl": _jsonl_records, ".csv": _csv_records}
    sniffed = {"[": ".json", "{": ".jsonl"}.get(text.lstrip()[:1], ".csv")
    reader = readers.get(Path(path).suffix.lower(), readers[sniffed])
    return _collect(reader(text.rstrip(), source) if text.strip() else [], source, zsre_target)


def as_facts(facts: Iterable[Fact | Mapping[str, Any]], zsre_target: ZsreTarget = "answers") -> list[Fact]:
    """Accept facts and records alike, mixed as you like; one without an id gets its 0-based position.

    Args:
        facts: Facts and records.
        zsre_target: As for :func:`load_facts`.

    Returns:
        At least one fact, in order, with distinct ids. Warns as :func:`load_facts` does.

    Raises:
        InputError: if this is not a collection of facts or records, is empty, or a record is bad.
    """
    if isinstance(facts, (str, bytes, Mapping, Fact)) or not isinstance(facts, Iterable):
        raise field_error("facts", "a list of facts or records", facts, "put it in a list; load_facts reads files")
    return _collect((("facts", fact) for fact in facts), "facts", zsre_target)


def _collect(records: Iterable[tuple[str, Any]], source: str, zsre_target: ZsreTarget) -> list[Fact]:
    """Facts from (place, record) pairs, with the checks that need more than one record."""
    facts: dict[str, Fact] = {}
    notes: dict[str, list[int]] = {}
    unread: dict[str, None] = {}
    alternatives = 0
    for position, (place, record) in enumerate(records):
        if isinstance(record, Fact):
            fact = record if record.fact_id else replace(record, fact_id=str(position))
        else:
            if _has_alternative(record, zsre_target):
                alternatives += 1
                if record["alt"] in (None, ""):
                    notes.setdefault("alt is empty, the record is left out", []).append(position)
                    continue
            fact = Fact.from_record(record, position, place, zsre_target)
            fields = {**record, **record.get("requested_rewrite", {})}
            unread |= dict.fromkeys(unread_fields(tuple(str(n) for n, value in fields.items() if value is not None)))
        if fact.fact_id in facts:
            came = f"{shorten(fact.fact_id)} as in record {list(facts).index(fact.fact_id) + 1}; rename one"
            raise InputError(f"{place}, record {position + 1}: field 'fact_id': expected an id of its own, got {came}")
        if fact.target_new == fact.target_true:
            notes.setdefault("target_new equals target_true, no score can tell the edit", []).append(position)
        facts[fact.fact_id] = fact
    if zsre_target == "alt" and facts and not alternatives:
        raise InputError(
            f"{source}: zsre_target: expected zsRE's records, which have 'alt' and no target_new, for 'alt', but there "
            "are none; leave it at 'answers'"
        )
    if not facts:
        raise InputError(f"{source}: expected at least one fact, got none; add a record with {', '.join(REQUIRED)}")
    for note, at in notes.items():
        warnings.warn(f"{source}: {note} (record {at[0] + 1} first, {len(at)} in all)", UserWarning, stacklevel=3)
    if unread:
        names = ", ".join(unread)
        told = f"fields that look like known ones are not read: {names}; rename what is meant to be read"
        warnings.warn(f"{source}: {told}", UserWarning, stacklevel=3)
    return list(facts.values())


def _has_alternative(record: Any, zsre_target: ZsreTarget) -> bool:
    """Whether ``alt`` is what is written of a record."""
    return zsre_target == "alt" and isinstance(record, Mapping) and "alt" in record and "target_new" not in record


def _foreign_locality(record: Mapping[str, Any]) -> bool:
    """Whether the locality prompt's answer is known to be another than the fact's true target."""
    answers = [record.get(name) for name in ("ground_truth", "locality_ground_truth") if record.get("locality_prompt")]
    return len({answer.strip() for answer in answers if isinstance(answer, str)}) == 2


def _read_fields(record: Any, zsre_target: ZsreTarget) -> tuple[dict[str, Any], dict[str, str]]:
    """A record's values by :class:`Fact` field, and the names that the record has for those fields."""
    if not isinstance(record, Mapping):
        raise InputError(f"expected an object with fields, got {shorten(record)}; write {{…}} with {REQUIRED}")
    rewrite = record.get("requested_rewrite", {})
    if not isinstance(rewrite, Mapping):
        raise field_error("requested_rewrite", "an object", rewrite, "see CounterFact's format in editkit.data.facts")
    merged = {**record, **rewrite}
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for field, others in aliases(zsre_target).items():
        name = next((one for one in (field, *others) if merged.get(one) is not None), None)
        if name is None and field in REQUIRED:
            came = f"only the fields {shorten(', '.join(map(str, merged)))}"
            meant = next((f"rename {one!r} or " for one in merged if meant_field(str(one)) in (field, *others)), "")
            add = "alt" if zsre_target == "alt" and field == "target_new" and "answers" in merged else field
            raise InputError(f"field {add!r}: expected a string, got {came}; {meant}add the field {add!r}")
        if name is not None:
            value = merged[name]
            is_target = field.startswith("target") and isinstance(value, Mapping)
            values[field] = value.get("str") if is_target else value
            if name == "answers" and isinstance(value, Sequence) and not isinstance(value, str) and value:
                values[field] = value[0]
            names[field] = ("requested_rewrite." if name in rewrite else "") + name + (".str" if is_target else "")
    if _foreign_locality(record) and names.get("neighborhood_prompts") == "locality_prompt":
        values["unrelated_prompts"] = values.pop("neighborhood_prompts")
        values["unrelated_answers"] = record["locality_ground_truth"]
    if type(values.get("fact_id")) is int:  # isinstance would take a bool
        values["fact_id"] = str(values["fact_id"])
    prompt, subject = values["prompt"], values["subject"]
    if isinstance(prompt, str) and isinstance(subject, str) and prompt.strip() and subject.strip():
        values["prompt"] = prompt if "{}" in prompt else _template(prompt, subject.strip(), names["prompt"])
    return values, names


def _template(prompt: str, subject: str, name: str) -> str:
    """A spelled-out prompt with {} for the subject."""
    # "Art" stands in "Article by Art" twice; scripts without word boundaries fall back to the first occurrence.
    found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt) or re.search(re.escape(subject), prompt)
    if found is None:
        came = f"subject absent from the prompt: expected {{}} or {shorten(subject)}, got {shorten(prompt)}"
        raise InputError(f"field {name!r}: {came}; write {{}} where the subject goes")
    return prompt[: found.start()] + "{}" + prompt[found.end() :]


def _clean(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Validate and normalise a fact's fields; ``names`` says what the user calls them. Idempotent."""
    names = {field: names.get(field, field) for field in Fact.__dataclass_fields__}
    clean: dict[str, Any] = {field: _text(values[field], names[field]) for field in REQUIRED}
    clean.update(subject=clean["subject"].strip(), target_new=clean["target_new"].strip())
    clean["prompt"] = clean["prompt"].rstrip(" ")
    if "{}" in clean["subject"]:
        raise field_error(names["subject"], "a name without {}", clean["subject"], "spell the subject out")
    if clean["prompt"].count("{}") != 1:
        raise field_error(names["prompt"], "exactly one {}", clean["prompt"], "write {} once, where the subject goes")
    for field in ("target_true", "relation"):
        value = values.get(field)
        clean[field] = None if value is None else _text(value, names[field]).strip()
    for field in PROMPT_LISTS:
        given = [values[field]] if isinstance(values.get(field), str) else values.get(field, ())
        if not isinstance(given, Sequence):
            raise field_error(names[field], "a list of strings", given, "write the prompts in a list")
        prompts = [_text(one, f"{names[field]}[{number}]").rstrip(" ") for number, one in enumerate(given)]
        if field in _OTHERS and "{}" in "".join(prompts):
            raise field_error(names[field], "prompts without {}", prompts, "spell out the other subjects there")
        clean[field] = tuple(one.replace("{}", clean["subject"]) for one in prompts)
    prompts, answers = clean["unrelated_prompts"], clean["unrelated_answers"]
    if len(prompts) != len(answers):
        expected = f"an answer for each of the {len(prompts)} unrelated prompts"
        raise field_error(names["unrelated_answers"], expected, answers, "give as many answers as prompts")
    clean["unrelated_answers"] = tuple(one.strip() for one in answers)
    fact_id = values.get("fact_id", "")
    clean["fact_id"] = fact_id if fact_id == "" else _text(fact_id, names["fact_id"]).strip()
    return clean


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise field_error(name, "a string", value, "put a text in quotes there")
    kinds = {unicodedata.category(character) for character in value}
    if "Cs" in kinds or "\0" in value:
        what = "a text that UTF-8 can hold, without half of a surrogate pair or NUL"
        raise field_error(name, what, value, "write the character that is meant")
    if kinds <= INVISIBLE:
        raise field_error(name, "a text that is not empty", value, "fill it in, or leave the field out if it may be")
    return value


def _json_records(text: str, source: str) -> list[tuple[str, Any]]:
    records = _json(text, source, 1, "correct it there, or name the file .jsonl if it has a record a line")
    if not isinstance(records, list):
        raise InputError(f"{source}: expected a list of records, got {shorten(records)}; put the records in [ ]")
    return [(source, record) for record in records]


def _jsonl_records(text: str, source: str) -> list[tuple[str, Any]]:
    # Not splitlines: a JSON string may hold U+2028 as it is.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [(f"{source}, line {at}", _json(line, source, at, "write a whole JSON object a line")) for at, line in lines]


def _json(text: str, source: str, first_line: int, remedy: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except InputError as error:
        raise InputError(f"{source}, from line {first_line} on: {error}") from None
    except (ValueError, RecursionError) as error:  # the plain ones come of absurd numbers and nesting
        line, column = first_line - 1 + getattr(error, "lineno", 1), getattr(error, "colno", 1)
        came = f"{getattr(error, 'msg', error)} at {shorten(text[getattr(error, 'pos', 0) :])}"
        raise InputError(f"{source}, line {line}, column {column}: expected JSON, got {came}; {remedy}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f"field {double!r}: expected once in an object, got it twice; take one out")
    return found


def _header(cells: Sequence[str], place: str) -> list[str]:
    """The names in a CSV file's first line."""
    header = [name.strip() for name in cells]
    if double := [name for name in header if name and header.count(name) > 1]:
        raise InputError(f"{place}: expected each column once, got {double[0]!r} twice; take one out or rename it")
    if not any(is_field(name) or meant_field(name) for name in header):
        apart = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
        what = f"columns apart by {apart!r}" if apart else "what looks like data"
        raise InputError(
            f"{place}: expected a header that names the columns ({', '.join(REQUIRED)}, …), got {what}, "
            f"{shorten(', '.join(header))}; {'put commas between the columns' if apart else 'add the header line'}"
        )
    return header


def _csv_records(text: str, source: str) -> list[tuple[str, Any]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    records: list[tuple[str, Any]] = []
    try:
        header = _header(next(filter(None, rows)), f"{source}, line {rows.line_num or 1}")
        for row in filter(None, rows):
            place = f"{source}, line {rows.line_num}"
            if len(row) > len(header):
                came = f"expected {len(header)} cells, got {len(row)}; quote a text that has commas"
                raise InputError(f"{place}, record {len(records) + 1}: {came}")
            record: dict[str, Any] = {n: c for n, c in zip(header, row, strict=False) if c.strip() or n in REQUIRED}
            for name in record.keys() & set(CSV_LISTS):
                record[name] = [part.strip() for part in record[name].split("|") if part.strip()]
            records.append((place, record))
    except csv.Error as error:
        raise InputError(f"{source}, line {rows.line_num}: expected CSV, got {error}; check the quotes") from None
    return records
