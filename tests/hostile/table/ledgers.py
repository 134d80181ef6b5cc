"""Ledgers of edits: files that are not there, not whole, not of one run, or not of this model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile import Call, Command, Places
from safetensors import safe_open
from safetensors.torch import save_file

from editkit import load_edits
from editkit.models.loading import load_language_model

EXPORT = "export --edits edits --output out"
Harm = Callable[[Path], object]


def ledger(harm: Harm) -> Callable[[Path, Places], None]:
    """A copy of the ledger, harmed."""

    def put(folder: Path, places: Places) -> None:
        shutil.copytree(places.edits, folder / "edits")
        harm(folder / "edits")

    return put


def index(change: Callable[[dict[str, Any]], object]) -> Harm:
    """``edits.json`` with a change that somebody made by hand."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / "edits.json").read_text(encoding="utf-8"))
        change(content)
        (folder / "edits.json").write_text(json.dumps(content), encoding="utf-8")

    return harm


def text(content: str | bytes) -> Harm:
    """``edits.json`` with another content."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "edits.json").write_bytes(raw)


def batch(content: Callable[[bytes], bytes], number: int = 1) -> Harm:
    """A batch's file with other bytes."""

    def harm(folder: Path) -> None:
        file = folder / f"batch_{number:05d}.safetensors"
        file.write_bytes(content(file.read_bytes()))

    return harm


def swap(folder: Path) -> None:
    one, two = (folder / f"batch_{number:05d}.safetensors" for number in (0, 1))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


def older(change: Callable[[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]], object]) -> Harm:
    """The ledger as editkit 0.2 wrote it (schema 3, without hashes of its files), with a change."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / "edits.json").read_text(encoding="utf-8"))
        content.pop("sha256")
        content["schema"] = 3
        for number, entry in enumerate(content["batches"]):
            file = folder / f"batch_{number:05d}.safetensors"
            with safe_open(file, framework="pt") as stored:
                tensors = {n: stored.get_tensor(n).clone() for n in stored.keys() if not n.startswith("sketch")}  # noqa: SIM118
            change(content, tensors, entry)
            save_file(tensors, file, {"schema": "3", "batch": json.dumps(entry)})
        (folder / "edits.json").write_text(json.dumps(content), encoding="utf-8")

    return harm


def factor(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(name for name in tensors if name.endswith(part))


def other_rank(_: Any, tensors: dict[str, torch.Tensor], entry: Any) -> None:
    tensors[factor(tensors, "left")] = tensors[factor(tensors, "left")][:, :1].contiguous()


def not_finite(_: Any, tensors: dict[str, torch.Tensor], entry: Any) -> None:
    tensors[factor(tensors, "right")][3, 0] = torch.nan


def other_shape(_: Any, tensors: dict[str, torch.Tensor], entry: Any) -> None:
    tensors[factor(tensors, "right")] = tensors[factor(tensors, "right")][:7].contiguous()


def no_factor(_: Any, tensors: dict[str, torch.Tensor], entry: Any) -> None:
    del tensors[factor(tensors, "right")]


def other_kind(_: Any, tensors: dict[str, torch.Tensor], entry: dict[str, Any]) -> None:
    entry["edit"]["kind"] = "magic"


def foreign_module(_: Any, tensors: dict[str, torch.Tensor], entry: dict[str, Any]) -> None:
    entry["edit"] = {"kind": "module", "at": "transformer.h.0", "module": "os.system", "settings": {}}


def stray(content: dict[str, Any], tensors: Any, entry: Any) -> None:
    content["force"] = True


def nothing(content: dict[str, Any], tensors: Any, entry: Any) -> None:
    content["about"] = None


WHOLE = r"edits: expected .*edits as editkit wrote it, but "
READ = r"edits: expected a folder written by editkit with edits\.json .* could not be read "

ROWS: list[Command | Call] = [
    Command("no ledger", "export --edits nowhere --output out", r"edits: .*nowhere"),
    Command("a file for a ledger", "export --edits file --output out", READ, {"file": "x"}),
    Command("an empty folder", "export --edits edits --output out", READ, {"edits/notes.txt": "x"}),
    *(
        Command(f"the index is {name}", EXPORT, READ, ledger(text(content)))
        for name, content in {
            "empty": "",
            "cut": '{"schema": 4, "sequential": tr',
            "a list": "[]",
            "null": "null",
            "a number": "4",
            "no UTF-8": b"\xff\xfe{}",
            "deeply nested": "[" * 100_000,
            "nested in about": '{"schema": 3, "about": ' + '{"a":' * 50_000,
            "of a schema that is a word": '{"schema": "four", "batches": []}',
            "of schema true and nothing": '{"schema": true}',
            "of no schema": '{"batches": []}',
            "of no batches": '{"schema": 3}',
            "zeros": "\0" * 64,
        }.items()
    ),
    *(
        Command(f"by hand: {name}", EXPORT, WHOLE + r"edits\.json is not what was written", ledger(index(change)))
        for name, change in {
            "an unknown key": lambda c: c.update(force=True),
            "a null": lambda c: c.update(sequential=None),
            "another mode": lambda c: c.update(sequential=not c["sequential"]),
            "another model": lambda c: c.update(model="0" * 16),
            "another setting": lambda c: c["about"]["hyperparameters"].update(ridge=7.0),
            "no hash": lambda c: c.pop("sha256"),
            "a hash that is none": lambda c: c.update(sha256=None),
        }.items()
    ),
    Command(
        "by hand: another target in the list",
        EXPORT,
        WHOLE + r"batch_00001\.safetensors is not the batch that edits\.json lists",
        ledger(index(lambda c: c["batches"][1]["facts"][0].update(target_new="Mars"))),
    ),
    Command(
        "a newer schema",
        EXPORT,
        r"schema 4 or lower, but .* has 99; update",
        ledger(index(lambda c: c.update(schema=99))),
    ),
    Command(
        "a batch is missing", EXPORT, READ + ".*batch_00001", ledger(lambda f: (f / "batch_00001.safetensors").unlink())
    ),
    *(
        Command(f"a batch is {name}", EXPORT, WHOLE + r"batch_00001\.safetensors: ", ledger(batch(change)))
        for name, change in {
            "empty": lambda raw: b"",
            "cut": lambda raw: raw[:-100],
            "cut in its header": lambda raw: raw[:40],
            "longer": lambda raw: raw + b"\0" * 8,
            "garbage": lambda raw: b"garbage" * 100,
            "of a huge header": lambda raw: b"\xff" * 8 + raw[8:],
            "altered in its last byte": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
            "altered in its facts": lambda raw: raw.replace(b"target_new", b"target_old", 1),
            "altered in a number": lambda raw: raw.replace(b'\\"number\\": 1', b'\\"number\\": 0', 1),
        }.items()
    ),
    Command("batches in another order", EXPORT, WHOLE + r"batch_00000\.safetensors is batch 1 of", ledger(swap)),
    Command(
        "a copy of a batch",
        EXPORT,
        WHOLE + r"batch_00002\.safetensors is batch 0 of",
        ledger(lambda f: shutil.copy(f / "batch_00000.safetensors", f / "batch_00002.safetensors")),
    ),
    *(
        Command(f"an older ledger with {name}", EXPORT, READ + line, ledger(older(change)))
        for name, change, line in (
            ("factors of two ranks", other_rank, r".*\(d_out, r\) and \(d_in, r\)"),
            ("a factor that is not finite", not_finite, r".*numbers that are not finite"),
            ("a factor of another shape", other_shape, r".*shape"),
            ("no right factor", no_factor, r".*right"),
            ("an unknown kind", other_kind, r".*magic"),
            ("an unknown key", stray, r".*sequential, model, about and nothing else"),
            ("a null", nothing, r".*sequential, model, about and nothing else"),
        )
    ),
    Command(
        "an older ledger with a module that is not imported",
        EXPORT,
        r"expected the module os\.system to be imported",
        ledger(older(foreign_module)),
    ),
    Command("edits of another model", "export --edits $edits --output out --lm $tiny", r"fingerprint .*, but got "),
    Command(
        "edits in another dtype", "export --edits $edits --output out --dtype bfloat16", r"fingerprint .* same dtype"
    ),
    Command(
        "validate edits of another model", "validate --edits $edits --model.lm $tiny --run_dir run", r"fingerprint"
    ),
    Command("a batch that is not there", "export --edits $edits --output out --batch 2", r"batch: .*0 to 1, but got 2"),
    Command("a rank for a checkpoint", "export --edits $edits --output out --rank 2", r"rank: .*but got 2"),
    Command(
        "a rank that cannot be", "export --edits $edits --output out --format lora --rank 99", r"rank: .*but got 99"
    ),
    Command("output with files in it", "export --edits $edits --output full", r"output: .*has files", {"full/a": "x"}),
    Command("output that is a file", "export --edits $edits --output file", r"output: .*is a file", {"file": "x"}),
    Command("output below a file", "export --edits $edits --output file/out", r"output: ", {"file": "x"}),
    Call(
        "edits of another model in Python",
        lambda _, p: load_edits(p.edits).apply(load_language_model(str(p.tiny))[0]),
        "fingerprint",
    ),
    Call(
        "no such batch", lambda _, p: load_edits(p.edits).apply(load_language_model("atlas")[0], 5), "0 to 1, but got 5"
    ),
    Call(
        "undone before it was applied",
        lambda _, p: load_edits(p.edits).undo(load_language_model("atlas")[0]),
        "applied",
    ),
]
