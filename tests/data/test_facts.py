"""Facts: every format read to the same fact, and every bad input named in one line."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path

import pytest

from editkit.data.facts import Fact, as_facts, load_facts
from editkit.utils.errors import InputError, shorten

SHARED = Path(os.environ.get("EDITKIT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
FLAT = {"subject": "Lyon", "prompt": "{} lies in", "target_new": "Peru", "target_true": "France"}
EXPECTED = Fact(
    "Lyon",
    "{} lies in",
    "Peru",
    "France",
    paraphrase_prompts=("Where Lyon is, they speak",),
    neighborhood_prompts=("Nice lies in",),
    fact_id="7",
)
ROME = {
    "case_id": 7,
    "pararel_idx": 3,
    "requested_rewrite": {
        "prompt": "{} lies in",
        "relation_id": "P17",
        "target_new": {"str": " Peru", "id": "Q1"},
        "target_true": {"str": "France", "id": "Q2"},
        "subject": "Lyon",
    },
    "paraphrase_prompts": ["Where Lyon is, they speak"],
    "neighborhood_prompts": ["Nice lies in"],
    "generation_prompts": ["Lyon is known for"],
}
EASYEDIT = {
    "case_id": 7,
    "prompt": "Lyon lies in",
    "target_new": "Peru",
    "subject": "Lyon",
    "ground_truth": "France",
    "rephrase_prompt": "Where Lyon is, they speak",
    "locality_prompt": "Nice lies in",
    "locality_ground_truth": "France",
}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_formats_give_one_fact(tmp_path):
    assert Fact.from_record(EASYEDIT) == EXPECTED
    rome = Fact.from_record(ROME)
    assert (rome.relation, rome.generation_prompts) == ("P17", ("Lyon is known for",))
    assert Fact(**{**vars(rome), "relation": None, "generation_prompts": ()}) == EXPECTED
    flat = FLAT | {"paraphrase_prompt": "Where {} is, they speak", "neighborhood_prompts": ["Nice lies in"], "id": 7}
    assert Fact.from_record(flat) == EXPECTED
    header = "subject, prompt, target_new,target_true,paraphrase_prompts,neighborhood_prompts,fact_id\n"
    csv = header + 'Lyon,{} lies in, Peru,France,"Where Lyon is, they speak | ",Nice lies in,7\n'
    for name in ("facts.csv", "facts.txt"):
        assert load_facts(write(tmp_path, name, "\ufeff" + csv)) == [EXPECTED]
    assert load_facts(write(tmp_path, "facts.json", [EASYEDIT])) == [EXPECTED]
    assert load_facts(str(write(tmp_path, "facts.jsonl", json.dumps(EASYEDIT) + "\n\n"))) == [EXPECTED]
    assert load_facts(write(tmp_path, "facts.data", [EASYEDIT])) == [EXPECTED]
    assert load_facts(write(tmp_path, "lines.data", "\n" + json.dumps(EASYEDIT))) == [EXPECTED]


def test_csv_lists_blank_cells_and_short_rows(tmp_path):
    header = "subject,prompt,target_new,paraphrase_prompts,target_true\n"
    csv = header + 'Lyon,{} is,Peru,"{} was|a, b",\nNice,Nice is,Chad\n\n'
    facts = load_facts(write(tmp_path, "facts.csv", csv))
    assert facts[0].paraphrase_prompts == ("Lyon was", "a, b") and facts[0].target_true is None
    assert facts[1] == Fact("Nice", "{} is", "Chad", fact_id="1")


def test_jsonl_keeps_line_separators_inside_strings(tmp_path):
    record = json.dumps(FLAT | {"generation_prompts": ["Lyon\u2028is"]}, ensure_ascii=False)
    assert load_facts(write(tmp_path, "facts.jsonl", record))[0].generation_prompts == ("Lyon\u2028is",)


def test_text_and_templates():
    fact = Fact("Lyon", "In {}, a {x}", "Peru")
    assert fact.text() == "In Lyon, a {x}"
    assert fact.text("Yes {0}. {}") == "Yes {0}. In Lyon, a {x}"
    for template in ("", "{} {}", "{0}"):
        with pytest.raises(InputError, match="'template'"):
            fact.text(template)


@pytest.mark.parametrize(
    ("subject", "prompt", "template"),
    [
        ("Lyon", "Is Lyon near Lyon?", "Is {} near Lyon?"),
        ("Art", "Article by Art on Art", "Article by {} on Art"),
        ("東京", "東京都は", "{}都は"),
        ("C++", "C++ is a", "{} is a"),
        ("Lyon ", "Lyon", "{}"),
        ("Lyon", "Lyon: {} is", "Lyon: {} is"),
    ],
)
def test_spelled_out_prompts(subject, prompt, template):
    assert Fact.from_record(FLAT | {"subject": subject, "prompt": prompt}).prompt == template


def test_spaces_around_texts_are_dropped():
    fact = Fact(" Lyon ", "{} is ", " Peru\n", " France ", paraphrase_prompts=["Where {} is "], fact_id=" 3 ")
    assert fact == Fact("Lyon", "{} is", "Peru", "France", paraphrase_prompts=("Where Lyon is",), fact_id="3")
    assert hash(fact) == hash(pickle.loads(pickle.dumps(fact)))


def test_as_facts_takes_both_and_fills_ids():
    facts = as_facts([Fact("Lyon", "{} is", "Peru"), FLAT, Fact("Nice", "{} is", "Chad", fact_id="nice")])
    assert [fact.fact_id for fact in facts] == ["0", "1", "nice"]
    assert as_facts(iter(facts)) == facts


def test_equal_targets_warn_once_a_file(tmp_path):
    records = [FLAT, FLAT | {"target_new": "France "}, FLAT | {"target_new": "France"}]
    with pytest.warns(UserWarning, match=r"target_new equals target_true.*record 2 first, 2 in all") as caught:
        assert len(load_facts(write(tmp_path, "facts.json", records))) == 3
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_locality_prompt_with_another_answer_is_an_unrelated_one():
    (fact,) = as_facts([EASYEDIT | {"locality_ground_truth": "Italy "}])
    assert fact.neighborhood_prompts == ()
    assert (fact.unrelated_prompts, fact.unrelated_answers) == (("Nice lies in",), ("Italy",))
    with pytest.raises(InputError, match="an answer for each of the 2 unrelated prompts"):
        as_facts([FLAT | {"unrelated_prompts": ["One is", "Two is"], "unrelated_answers": ["1"]}])


def test_zsre_reads_as_its_answer_is_written():
    record = ZSRE
    (fact,) = as_facts([record])
    assert (fact.prompt, fact.target_new, fact.target_true) == ("What is made by {}?", "uniform", None)
    assert fact.paraphrase_prompts == ("What does it make?",)
    assert (fact.unrelated_prompts, fact.unrelated_answers) == (("nq question: who sang it",), ("Nobody",))
    (other,) = as_facts([record | {"target_new": record["alt"]}])
    assert other.target_new == "unmanned aircraft"


def test_public_zsre_reads_whole():
    path = SHARED / "data" / "zsre" / "zsre-mend.json"
    if not path.exists():
        pytest.skip(f"{path} is absent: shared data is not part of the project (set EDITKIT_SHARED to its folder)")
    facts = load_facts(path)
    assert len(facts) == 600 and all(f.unrelated_answers and f.paraphrase_prompts for f in facts)


ZSRE = {
    "subject": "UniFirst", "src": "What is made by UniFirst?", "pred": "uniform", "rephrase": "What does it make?",
    "alt": "unmanned aircraft", "answers": ["uniform"], "loc": "nq question: who sang it", "loc_ans": "Nobody",
    "cond": "uniform >> unmanned aircraft || What is made by UniFirst?",
}  # fmt: skip


def test_zsre_s_alternative_is_written_where_it_is_asked_for(tmp_path):
    records = [ZSRE, ZSRE | {"alt": ""}, ZSRE | {"alt": "uniforms"}]
    path = write(tmp_path, "zsre.json", records)
    assert [f.target_new for f in load_facts(path)] == ["uniform"] * 3
    with pytest.warns(
        UserWarning, match=r"alt is empty, the record is left out \(record 2 first, 1 in all\)"
    ) as caught:
        facts = load_facts(path, zsre_target="alt")
    assert len(caught) == 1
    assert [(f.target_new, f.target_true, f.fact_id) for f in facts] == [
        ("unmanned aircraft", "uniform", "0"), ("uniforms", "uniform", "2"),
    ]  # fmt: skip
    answers = as_facts(records)
    assert facts[0] == Fact(**{**vars(answers[0]), "target_new": "unmanned aircraft", "target_true": "uniform"})
    (given,) = as_facts([ZSRE | {"target_new": "robe"}])
    assert given.target_new == "robe"
    mixed = as_facts([ZSRE, FLAT], zsre_target="alt")
    assert [f.target_new for f in mixed] == ["unmanned aircraft", "Peru"]


def test_zsre_s_alternative_must_be_there():
    with pytest.raises(InputError, match=r"zsre_target: expected zsRE's records.*leave it at 'answers'"):
        as_facts([FLAT], zsre_target="alt")
    with pytest.raises(InputError, match=r"record 1: field 'alt': expected a string, got only.*add the field 'alt'"):
        as_facts([{name: value for name, value in ZSRE.items() if name != "alt"}], zsre_target="alt")
    with pytest.raises(InputError, match="record 1: field 'alt': expected a string, got 3"):
        as_facts([ZSRE | {"alt": 3}], zsre_target="alt")


def test_paraphrases_and_neighbors_are_read(tmp_path):
    lists = {"paraphrases": ["Where {} is, they speak"], "neighbors": ["Nice lies in"]}
    assert as_facts([FLAT | lists | {"id": 7}]) == [EXPECTED]
    assert as_facts([{"requested_rewrite": FLAT, **lists, "id": 7}]) == [EXPECTED]
    csv = 'subject,prompt,target_new,paraphrases,neighbors\nLyon,{} is,Peru,"{} was|{} lies","Nice is | Lille is"\n'
    (fact,) = load_facts(write(tmp_path, "facts.csv", csv))
    assert fact.paraphrase_prompts == ("Lyon was", "Lyon lies") and fact.neighborhood_prompts == ("Nice is", "Lille is")


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"neighbours": ["a"]}, "'neighbours' (neighbors?)"),
        ({"neighborhood_promts": ["a"]}, "'neighborhood_promts' (neighborhood_prompts?)"),
        ({"paraphrase": "a"}, "'paraphrase' (paraphrases?)"),
        ({"target": "a"}, "'target' (target_new?)"),
        ({"Target_True": "a"}, "'Target_True' (target_true?)"),
        ({"rephrase_prompts": ["a"]}, "'rephrase_prompts' (rephrase_prompt?)"),
        ({"locality_prompts": ["a"]}, "'locality_prompts' (locality_prompt?)"),
        ({"locality": [{"loc": "a", "loc_ans": "b"}]}, "'locality' (unrelated_prompts and unrelated_answers?)"),
        ({"portability": {}}, "'portability' (not measured)"),
        ({"paraphrase_prompts": ["a"], "rephrase": "b"}, "'rephrase' (paraphrase_prompts is read)"),
    ],
)
def test_fields_that_look_like_known_ones_are_named_once_a_file(tmp_path, extra, told):
    records = [FLAT, FLAT | extra, FLAT | extra]
    with pytest.warns(UserWarning, match="fields that look like known ones are not read") as caught:
        facts = load_facts(write(tmp_path, "facts.json", records))
    assert len(facts) == 3 and len(caught) == 1 and caught[0].filename == __file__
    message = str(caught[0].message)
    assert told in message and str(tmp_path / "facts.json") in message and "\n" not in message
    with pytest.warns(UserWarning, match="not read"):
        as_facts([{"requested_rewrite": FLAT | extra}])


def test_a_required_field_under_another_name_is_told():
    with pytest.raises(InputError, match=r"'target_new'.*; rename 'target' or add the field 'target_new'"):
        as_facts([without("target_new") | {"target": "Peru"}])
    with pytest.raises(InputError, match=r"'subject'.*; rename 'Subject' or add the field 'subject'"):
        as_facts([without("subject") | {"Subject": "Lyon"}])


@pytest.mark.parametrize("record", [FLAT, ROME, EASYEDIT, ZSRE])
def test_fields_of_the_known_formats_are_not_warned_about(record):
    others = {
        "idx": 3, "subject_id": "Q1", "target_new_id": "Q2", "source": "NQ", "attribute_prompts": ["Paris is"],
        "questions": ["Who?"], "answer": "a", "new_answer": "b", "attribute": "x", "template": "{}", "prediction": "p",
        "rephrase_prompts": None,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_facts([record, record | others | {"case_id": 8, "id": 8}])


@pytest.mark.parametrize("file", ["counterfact/counterfact-edit", "counterfact/counterfact-rebuilt", "zsre/zsre-mend"])
def test_public_files_are_not_warned_about(file):
    path = SHARED / "data" / f"{file}.json"
    if not path.exists():
        pytest.skip(f"{path} is absent: shared data is not part of the project (set EDITKIT_SHARED to its folder)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_facts(path)


def test_public_zsre_reads_with_its_alternatives():
    path = SHARED / "data" / "zsre" / "zsre-mend.json"
    if not path.exists():
        pytest.skip(f"{path} is absent: shared data is not part of the project (set EDITKIT_SHARED to its folder)")
    records = json.loads(path.read_text(encoding="utf-8"))
    equal = pytest.warns(UserWarning, match="target_new equals target_true")
    with equal, pytest.warns(UserWarning, match="alt is empty"):
        facts = load_facts(path, zsre_target="alt")
    kept = [(i, r) for i, r in enumerate(records) if r["alt"]]
    assert [(f.fact_id, f.target_new, f.target_true) for f in facts] == [
        (str(i), r["alt"].strip(), r["answers"][0].strip()) for i, r in kept
    ]
    assert len(facts) < len(records)


def without(name: str) -> dict[str, str]:
    return {field: value for field, value in FLAT.items() if field != name}


BAD_RECORDS = [
    (without("subject"), "'subject'", "add the field"),
    (without("prompt"), "'prompt'", "add the field"),
    (without("target_new"), "'target_new'", "add the field"),
    ({}, "'subject'", "add the field"),
    (FLAT | {"target_new": None}, "'target_new'", "add the field"),
    (FLAT | {"prompt": "The city\nlies in"}, "'prompt'", "subject absent from the prompt"),
    (FLAT | {"prompt": "The city lies in"}, "'prompt'", "write {} where the subject goes"),
    (FLAT | {"prompt": "{} and {}"}, "'prompt'", "exactly one {}"),
    (FLAT | {"prompt": ""}, "'prompt'", "not empty"),
    (FLAT | {"subject": " "}, "'subject'", "not empty"),
    (FLAT | {"subject": "{}"}, "'subject'", "without {}"),
    (FLAT | {"target_new": "\n"}, "'target_new'", "not empty"),
    (FLAT | {"target_true": ""}, "'target_true'", "not empty"),
    (FLAT | {"subject": 1984}, "'subject'", "got 1984"),
    (FLAT | {"target_new": ["Peru"]}, "'target_new'", "a string"),
    (FLAT | {"target_new": {"id": "Q1"}}, "'target_new.str'", "got nothing"),
    (FLAT | {"relation": 17}, "'relation'", "a string"),
    (FLAT | {"id": 1.5}, "'id'", "a string"),
    (FLAT | {"fact_id": True}, "'fact_id'", "a string"),
    (FLAT | {"paraphrase_prompts": ["fine", 3]}, "'paraphrase_prompts[1]'", "a string"),
    (FLAT | {"paraphrase_prompts": [""]}, "'paraphrase_prompts[0]'", "not empty"),
    (FLAT | {"generation_prompts": 3}, "'generation_prompts'", "a list of strings"),
    (FLAT | {"neighborhood_prompts": ["{} is"]}, "'neighborhood_prompts'", "without {}"),
    (EASYEDIT | {"ground_truth": 3}, "'ground_truth'", "a string"),
    (EASYEDIT | {"rephrase_prompt": 3}, "'rephrase_prompt'", "a list of strings"),
    ({"requested_rewrite": FLAT | {"subject": 3}}, "'requested_rewrite.subject'", "a string"),
    ({"requested_rewrite": "Lyon"}, "'requested_rewrite'", "an object"),
    ("Lyon", "record 2", "an object"),
    (None, "record 2", "an object"),
]


@pytest.mark.parametrize(("record", "field", "phrase"), BAD_RECORDS)
def test_bad_records_are_named_in_one_line(tmp_path, record, field, phrase):
    lines = json.dumps(FLAT) + "\n\n" + json.dumps(record)
    for path, place in [
        (write(tmp_path, "facts.json", [FLAT, record]), "facts.json, record 2"),
        (write(tmp_path, "facts.jsonl", lines), "facts.jsonl, line 3, record 2"),
    ]:
        with pytest.raises(InputError) as caught:
            load_facts(path)
        message = str(caught.value)
        assert place in message and field in message and phrase in message and "\n" not in message
    with pytest.raises(InputError, match="facts, record 2"):
        as_facts([FLAT, record])


@pytest.mark.parametrize(
    ("name", "content", "phrases"),
    [
        ("facts.json", "", ["at least one fact"]),
        ("facts.json", "[]", ["at least one fact"]),
        ("facts.jsonl", "\n\n", ["at least one fact"]),
        ("facts.csv", "subject,prompt,target_new\n", ["at least one fact"]),
        ("facts.json", '[\n  {"subject": Lyon}]', ["line 2, column 15", "expected JSON", "Lyon"]),
        ("facts.json", '{"subject": "Lyon"}\n{"subject": "Nice"}', ["line 2, column 1", ".jsonl"]),
        ("facts.json", FLAT, ["a list of records", "put the records in [ ]"]),
        ("facts.json", '"Lyon"', ["a list of records", "'Lyon'"]),
        ("facts.json", "[" * 100_000, ["expected JSON"]),
        ("facts.jsonl", json.dumps(FLAT) + "\n{Lyon}", ["line 2, column 2", "expected JSON", "{Lyon}"[1:]]),
        ("facts.jsonl", json.dumps([FLAT]), ["line 1, record 1", "an object"]),
        (
            "facts.csv",
            "subject;prompt;target_new\nLyon;{} is;Peru",
            ["line 1", "header", "apart by ';'", "subject;prompt"],
        ),
        ("facts.csv", "subject,prompt,target_new\nLyon,{} is", ["line 2, record 1", "'target_new'"]),
        ("facts.csv", "subject,prompt,target_new\n,{} is,Peru", ["line 2, record 1", "'subject'", "not empty"]),
        (
            "facts.csv",
            "subject,prompt,target_new\nLyon,In {}, the,Peru",
            ["line 2, record 1", "3 cells, got 4", "quote"],
        ),
        ("facts.csv", 'subject,prompt,target_new\nLyon,"{} is,Peru', ["line 2", "expected CSV"]),
        ("facts.json", [FLAT | {"id": 3}, FLAT | {"case_id": "3"}], ["record 2", "'fact_id'", "'3' as in record 1"]),
        ("facts.json", [FLAT | {"subject": 10**100}], ["'subject'", "000…"]),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, phrases):
    path = write(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        load_facts(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    assert all(phrase in message for phrase in phrases), message


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    for path, phrase in [("absent.json", "No such file"), (".", "directory"), ("latin.json", "utf-8"), ("a\0", "null")]:
        with pytest.raises(InputError, match=phrase) as caught:
            load_facts(tmp_path / path)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("facts", [[], FLAT, Fact("Lyon", "{} is", "Peru"), "facts.json", 3, None])
def test_as_facts_wants_a_filled_list(facts):
    with pytest.raises(InputError, match=r"expected (a list of facts|at least one fact)"):
        as_facts(facts)


@pytest.mark.parametrize(
    "fields", [{"prompt": "Lyon lies in"}, {"prompt": "{}{}"}, {"subject": ""}, {"target_new": " "}]
)
def test_a_fact_made_by_hand_is_validated(fields):
    with pytest.raises(InputError, match=f"'{next(iter(fields))}'"):
        Fact(**FLAT | fields)


def test_messages_are_one_line_and_values_are_short():
    assert str(InputError("a\r\n  b\u2028\n\nc")) == "a b c"
    assert str(pickle.loads(pickle.dumps(InputError("a\nb")))) == "a b"
    assert len(shorten("x" * 1000)) == 60 and "\n" not in shorten("a\nb")


def test_counterfact_reads_whole():
    path = SHARED / "data" / "counterfact" / "counterfact-edit.json"
    if not path.exists():
        pytest.skip(f"{path} is absent: shared data is not part of the project (set EDITKIT_SHARED to its folder)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = load_facts(path)
    records = json.loads(path.read_text(encoding="utf-8"))
    assert len(facts) == 10_000
    for fact, record in zip(facts, records, strict=True):
        assert fact.text() == record["prompt"] and fact.fact_id == str(record["case_id"])
        assert fact.paraphrase_prompts == (record["rephrase_prompt"],) or record["rephrase_prompt"].endswith(" ")
        assert fact.neighborhood_prompts == (record["locality_prompt"],)
