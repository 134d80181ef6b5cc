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
from editkit.utils.files import digest, file_hash, user_path

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
        seed: of the atlas's text, and of labels that are drawn for output gradients.
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
    path = user_path(source.text, "second_moment.text")
    files = text_files(source)
    if not files:
        return _dataset(source, path if path.is_dir() else None)
    read = _read_jsonl if path.suffix == ".jsonl" else _read_plain
    return Text(
        digest([file_hash(f) for f in files]), lambda: (document for file in files for document in read(file, source))
    )


def text_files(source: TextSource) -> list[Path]:
    """The files of a source's text; none where it is built in, or a dataset.

    Raises:
        InputError: there is no such file.
    """
    if source.text is None or resolve(source.text) is not None:
        return []
    path = user_path(source.text, "second_moment.text")
    if path.is_dir():
        return sorted(path.rglob("*.txt"))
    if path.is_file():
        return [path]
    if source.text.startswith((".", "/", "~")) or path.suffix in (".txt", ".jsonl") or not source.text:
        raise InputError(
            f"second_moment.text: expected 'atlas', a text file, a folder of .txt files, a .jsonl file, a saved "
            f"dataset or a dataset's name, but there is no {source.text}; check the path"
        )
    return []


def check_readable(source: TextSource, text: Text, characters: int | None, documents: int | None = None) -> None:
    """Read a text's files as far as they will be used, before work begins.

    Args:
        source: the source.
        text: its text.
        characters: to read; None: all.
        documents: to read at most.

    Raises:
        InputError: something there is no text.
    """
    if not text_files(source):
        return
    read = 0
    for document in islice(text.documents(), documents):
        read += len(document)
        if characters is not None and read >= characters:
            return


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
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"second_moment.text: expected one JSON object a line, but line {number} of {file} is not JSON "
                f"({error}); correct it"
            ) from error
        _check_column(source.column, list(record) if isinstance(record, dict) else [], f"line {number} of {file}")
        yield _text(record[source.column], source.column, f"line {number} of {file}")


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(
            f"second_moment.column: expected text under {column!r}, but {where} has {shorten(value)}; choose another "
            "field"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
        raise InputError(
            f"second_moment.text: expected text that UTF-8 can hold, but {where} has {shorten(value)}; correct it"
        ) from error
    return value


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
    return Text(
        f"{source.revision or ''}{found._fingerprint}",
        lambda: (_text(row[column], column, str(source.text)) for row in found),
    )


def _check_column(column: str, there: Sequence[str], where: str) -> None:
    if column not in there:
        raise InputError(
            f"second_moment.column: expected a field of {where} ({', '.join(there) or 'it has none'}), but got "
            f"{column!r}; choose one that it has"
        )
