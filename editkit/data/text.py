"""Text for second moments: the atlas's own, files, folders, and ``datasets``; read document by document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from editkit.atlas.builtin import resolve
from editkit.utils.errors import InputError, shorten
from editkit.utils.files import digest, file_hash

#: which texts work, for messages
TEXTS = (
    "a .txt or .jsonl file, a folder of .txt files, a saved dataset, or a dataset's name (such as wikimedia/wikipedia "
    "with second_moment.config=20231101.en)"
)


@dataclass
class TextSource:
    """Which text, and how it is cut.

    Args:
        text: "atlas" (endless: the mix of prose, facts and probes that the atlas's model was trained on), a text file
            or a folder of .txt files (blank lines separate documents), a .jsonl file, a dataset written by
            ``save_to_disk``, or a name (or folder) that ``datasets.load_dataset`` takes.
        config: configuration of a named dataset, such as "20220301.en" of "wikipedia".
        split: split of a dataset that has several.
        column: field of a .jsonl file or column of a dataset that holds the text.
        revision: commit, tag or branch of a named dataset.
        seed: of the atlas's text.
        max_length: tokens per window.
        packing: False: each window lies within one document, and documents never attend to each other. True: documents
            are joined by the end-of-text token and cut into full windows, within which they do.
    """

    text: str | None = None
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    seed: int = 0
    max_length: PositiveInt = 128
    packing: bool = False


@dataclass(frozen=True)
class Text:
    """Text that was found.

    Attributes:
        revision: hash or revision of its content.
        documents: makes an iterator over its documents, in a fixed order.
    """

    revision: str
    documents: Callable[[], Iterator[str]]


def open_text(source: TextSource) -> Text:
    """Find a source's text; documents are read as they are asked for.

    Raises:
        InputError: nothing of that name, or not readable.
    """
    if source.text is None:
        raise InputError(f"second_moment.text: expected a text, but got none; give {TEXTS}")
    if (built_in := resolve(source.text)) is not None:
        return Text(digest(list(islice(built_in.documents(source.seed), 64))), lambda: built_in.documents(source.seed))
    path = Path(source.text).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            return _dataset(source, path)
    elif path.is_file():
        files = [path]
    elif source.text.startswith((".", "/", "~")) or path.suffix in (".txt", ".jsonl"):
        raise InputError(
            f"second_moment.text: expected 'atlas', a text file, a folder of .txt files, a .jsonl file, a saved "
            f"dataset or a dataset's name, but there is no {source.text}; check the path"
        )
    else:
        return _dataset(source, None)
    read = _read_jsonl if path.suffix == ".jsonl" else _read_plain
    return Text(
        digest([file_hash(f) for f in files]), lambda: (document for file in files for document in read(file, source))
    )


def _read_plain(file: Path, source: TextSource) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(file):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines).strip()
            lines = []
    if lines:
        yield "".join(lines).strip()


def _read_jsonl(file: Path, source: TextSource) -> Iterator[str]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"second_moment.text: expected one JSON object a line, but line {number} of {file} is not JSON "
                f"({error}); correct it"
            ) from error
        _check_column(source.column, list(record) if isinstance(record, dict) else [], f"line {number} of {file}")
        if not isinstance(record[source.column], str):
            raise InputError(
                f"second_moment.column: expected text under {source.column!r}, but line {number} of {file} has "
                f"{shorten(record[source.column])}; choose another field"
            )
        yield record[source.column]


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"second_moment.text: expected UTF-8 text, but {file} is not ({error}); convert it") from error


def _dataset(source: TextSource, folder: Path | None) -> Text:
    import datasets

    try:
        if folder is not None and any((folder / f).is_file() for f in ("state.json", "dataset_dict.json")):
            found: Any = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(source.text, source.config, revision=source.revision)
    except Exception as error:  # datasets raises whatever its readers and its hub client raise
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            "second_moment.text: expected 'atlas', a text file, a folder of .txt files, a .jsonl file, a saved "
            f"dataset or a dataset's name, but {source.text!r} could not be loaded ({cause}); check the "
            "name, or give a path"
        ) from error
    if isinstance(found, dict):
        if source.split not in found:
            raise InputError(
                f"second_moment.split: expected one of {', '.join(found)}, but got {source.split!r}; choose a split "
                f"that {source.text} has"
            )
        found = found[source.split]
    _check_column(source.column, found.column_names, str(source.text))
    column = source.column
    return Text(f"{source.revision or ''}{found._fingerprint}", lambda: (row[column] for row in found))


def _check_column(column: str, there: Sequence[str], where: str) -> None:
    if column not in there:
        raise InputError(
            f"second_moment.column: expected a field of {where} ({', '.join(there) or 'it has none'}), but got "
            f"{column!r}; choose one that it has"
        )
