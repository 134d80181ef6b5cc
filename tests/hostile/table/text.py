"""Text and folders of second moments, and held-out text: looked at before anything is measured."""

from __future__ import annotations

from itertools import islice

from hostile import Command

from editkit.atlas.builtin import DEFAULT, resolve

SENTENCES = "the lonely castle stands. " * 2000
LINE = '{"text": "a castle of the century stands there"}\n'
COVARIANCE = "covariance --second_moment.path=m --trainer.enable_progress_bar=false "
FIT = "fit --data.num_facts=2 --model.values.num_steps=2 --run_dir=run --trainer.enable_progress_bar=false "
FILES = {
    "empty.txt": "", "blank.txt": "\n  \n\n", "binary.txt": b"\xff\xfe\0\x80" * 200, "short.txt": "A short text.",
    "rather-short.txt": "A castle of stone. " * 250, "broken.jsonl": LINE + "{broken",
    "late.jsonl": LINE * 3000 + "{broken",
    "other.jsonl": '{"body": "a"}', "later.jsonl": LINE * 3000 + '{"body": "a"}', "number.jsonl": '{"text": 5}',
    "list.jsonl": "[1]", "deep.jsonl": "[" * 100_000, "half.jsonl": '{"text": "\\ud800"}\n', "dir/a.txt": SENTENCES,
    "dir/z.txt": b"\xff", "file": "x",
}  # fmt: skip
SAID = {
    "nowhere.txt": r"second_moment\.text: .*there is no nowhere\.txt",
    "empty.txt": r"second_moment\.text: expected at least one token",
    "blank.txt": r"second_moment\.text: expected at least one token",
    "binary.txt": r"second_moment\.text: expected UTF-8 text, but binary\.txt",
    "short.txt": r"second_moment\.num_tokens: expected at least d_in = 1,536 tokens .* got [1-9]",
    "broken.jsonl": r"second_moment\.text: .*line 2 of broken\.jsonl is not JSON",
    "late.jsonl": r"second_moment\.text: .*line 3001 of late\.jsonl is not JSON",
    "other.jsonl": r"second_moment\.column: expected a field of line 1 of other\.jsonl \(body\)",
    "later.jsonl": r"second_moment\.column: expected a field of line 3001 of later\.jsonl",
    "number.jsonl": r"second_moment\.column: expected text under 'text'",
    "list.jsonl": r"second_moment\.column: expected a field",
    "deep.jsonl": r"second_moment\.text: .*line 1 of deep\.jsonl is not JSON",
    "half.jsonl": r"second_moment\.text: expected text that UTF-8 can hold",
    "dir": r"second_moment\.text: expected UTF-8 text, but dir/z\.txt",
    "~nobody-of-this-name/x": r"second_moment\.text: expected a path",
    "x" * 5000 + ".txt": r"second_moment\.text: expected a path, .*too long",
}
OPTIONS = {
    "path=file": r"second_moment\.path: expected a folder that can be written",
    "path=file/below": r"second_moment\.path: expected a folder that can be written",
    "path=/proc/nowhere": r"second_moment\.path: expected a folder that can be written",
    "path=~nobody-of-this-name/x": r"second_moment\.path: expected a path",
    "num_tokens=0": r"second_moment\.num_tokens: expected a number > 0",
    "tolerance=inf": r"second_moment\.tolerance: expected a finite number",
    "ridge=inf": r"second_moment\.ridge: expected a finite number",
    "ridge=nan": r"second_moment\.ridge: expected a number >= 0",
}


def _documents(count: int) -> list[str]:
    """Of the atlas's own prose."""
    built_in = resolve(DEFAULT)
    assert built_in is not None
    return list(islice(built_in.documents(3), count))


def _named(text: str) -> str:
    return text[:40]


ROWS = [
    *(
        Command(f"covariance of {_named(text)}", f"{COVARIANCE} --second_moment.text={text}", line, FILES)
        for text, line in SAID.items()
    ),
    *(
        Command(
            f"fit with {text}",
            f"{FIT} --model.second_moment.path=m --model.second_moment.text={text}",
            SAID[text],
            FILES,
        )
        for text in ("nowhere.txt", "empty.txt", "binary.txt", "short.txt", "late.jsonl", "other.jsonl")
    ),
    Command(
        "fit with a text that is rather short",
        f"{FIT} --model.second_moment.path=m --model.second_moment.text=rather-short.txt",
        r"second_moment\.num_tokens: expected at least d_in = 1,536 tokens .* got 1,\d\d\d",
        FILES,
    ),
    Command(
        "fewer tokens than asked for",
        f"{COVARIANCE} --second_moment.text=varied.txt --second_moment.num_tokens=400000",
        r"second_moment\.num_tokens: expected 400,000 tokens, but varied\.txt has",
        lambda folder, places: (folder / "varied.txt").write_text("\n\n".join(_documents(300)), encoding="utf-8"),
        code=0,
    ),
    *(
        Command(f"covariance with {option}", f"{COVARIANCE} --second_moment.{option}", line, FILES)
        for option, line in OPTIONS.items()
    ),
    *(
        Command(f"fit with {option}", f"{FIT} --model.second_moment.{option}", line, FILES)
        for option, line in OPTIONS.items()
    ),
    *(
        Command(
            f"{command} without a cache in {place}",
            f"{typed}second_moment.num_tokens=3000",
            r"EDITKIT_CACHE: expected a (folder that can be written|path)",
            FILES,
            environment={"EDITKIT_CACHE": place},
        )
        for place in ("file", "/proc/nowhere", "~nobody-of-this-name")
        for command, typed in (
            ("covariance", "covariance --trainer.enable_progress_bar=false --"),
            ("fit", f"{FIT} --model."),
        )
    ),
    *(
        Command(f"{command} with held-out {name}", f"{typed} --data.text.{option}", line, FILES)
        for command, typed in (("fit", FIT), ("validate", "validate --data.num_facts=2 --run_dir=run"))
        for name, option, line in (
            ("text that is missing", "text=nowhere.txt", r"data\.text\.text: .*there is no nowhere\.txt"),
            ("text that is empty", "text=empty.txt", r"data\.text: expected windows of at least two tokens"),
            ("binary text", "text=binary.txt", r"data\.text\.text: expected UTF-8 text"),
            ("windows of one token", "max_length=1", r"data\.text: expected windows of at least two tokens"),
        )
    ),
]
