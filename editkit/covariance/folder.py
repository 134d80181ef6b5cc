"""The folder of second moments: a file per layer that knows which model, tokenizer and text it is of.

``layer-L.safetensors`` holds C, float64, and what it is of in its header; ``layer-L.json`` beside it says the same for
people; ``layer-L.cholesky.safetensors`` is its factor. The moments of output gradients stand beside them, as
``layer-L.output_gradients.safetensors`` and ``.json``, and have no factor. A file of which one bit is not what was
written is refused, or made again where that can be.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from editkit.covariance.summand import KEYS, Summand
from editkit.functional import FactoredSecondMoment, condition_number, effective_rank, factor_second_moment
from editkit.functional.second_moment import spectrum
from editkit.utils.errors import InputError, shorten
from editkit.utils.files import atomic_write
from editkit.utils.hashes import tensor_hash
from editkit.utils.sealed import BrokenSeal, is_sealed, read_about, read_sealed, write_sealed
from editkit.utils.signals import hold

SCHEMA = 2

#: what must agree between stored moments and those asked for, and which option of the user's decides it
CHECKED = {
    "weights": "lm",
    "memory": "lm",
    "sample": "lm",
    "tokenizer": "lm",
    "d_in": "lm",
    "d_out": "lm",
    "text_revision": "second_moment.text",
    "label_seed": "second_moment.seed",
    "max_length": "second_moment.max_length",
    "packing": "second_moment.packing",
    "num_tokens": "second_moment.num_tokens",
    "num_documents": "second_moment.num_documents",
    "tolerance": "second_moment.tolerance",
}


@dataclass(frozen=True)
class Conditioning:
    """How well a layer's C can be solved with.

    Attributes:
        tokens: keys in the average, or other vectors.
        width: their dimensions.
        condition_number: largest over smallest eigenvalue of C.
        effective_rank: exp of the entropy of its normalised eigenvalues.
        jitter: what was added to its diagonal for the Cholesky factor; None where none is made.
    """

    tokens: int
    width: int
    condition_number: float
    effective_rank: float
    jitter: float | None


class SecondMomentFolder:
    """Second moments on disk.

    Args:
        folder: where; made at the first write.
        about: block to what its moments must be of (``CHECKED`` names the fields; those that are None agree with all).
        trust: take what is there without comparing.
        ridge: added to C before it is factored, as a share of its mean diagonal.
        of: what they are moments of.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[int, dict[str, Any]],
        trust: bool = False,
        ridge: float = 0.0,
        of: Summand = KEYS,
    ) -> None:
        self.folder, self.about, self.trust, self.ridge, self.of = folder, about, trust, ridge, of

    def file(self, layer: int, suffix: str = ".safetensors") -> Path:
        """Path of one of a layer's files."""
        return self.folder / f"layer-{layer}{self.of.suffix}{suffix}"

    def missing(self, layers: Sequence[int]) -> list[int]:
        """Layers without moments here; those that have some are checked.

        Raises:
            InputError: a file that is of something else (what differs is named), or cannot be read.
        """
        absent = [layer for layer in layers if not self.file(layer).exists()]
        for layer in layers:
            if layer not in absent:
                self.check(layer)
        return absent

    def check(self, layer: int) -> dict[str, Any]:
        """What a layer's stored moments are of, compared with what is asked for."""
        stored, asked = self._header(layer), self.about[layer]
        if self.trust:
            compared = [self.of.width_name]
        else:  # the hash of the checkpoint where both sides have one, else that of the weights in memory
            both = stored.get("weights") is not None and asked.get("weights") is not None
            of_model = "weights" if both else "memory" if stored["schema"] > 1 else "sample"
            compared = [name for name in CHECKED if name not in {"weights", "memory", "sample"} - {of_model}]
            if of_model == "sample":
                warnings.warn(
                    f"second_moment.path: {self.file(layer)} was made by editkit 0.2 or before, whose hash is of a few "
                    "entries of each parameter: that it is of this model in all others could not be checked; delete "
                    "it to have it made anew",
                    stacklevel=2,
                )
        for name in compared:
            ours, theirs = asked.get(name), stored.get(name)
            if ours is not None and ours != theirs:
                what = "weights" if name in ("memory", "sample") else name
                made = f" (text {shorten(stored.get('text'))})" if name == "text_revision" else ""
                made += f" (model {shorten(stored.get('model'))})" if CHECKED[name] == "lm" else ""
                raise InputError(
                    f"{CHECKED[name]}: expected the {what} that {self.file(layer)} was made with, {theirs}{made}, but "
                    f"got {ours}; give what it was made with, another second_moment.path, or second_moment.trust=true"
                )
        return stored

    def write(self, layer: int, moment: Tensor, about: dict[str, Any]) -> Conditioning:
        """Write one layer's C, its factor and its description, each whole or not at all.

        Args:
            layer: its block.
            moment: (d, d) float64 on the CPU.
            about: what is known of it beyond what is checked: tokens, documents, names.

        Raises:
            InputError: it is not finite, or could not be written.
        """
        if not moment.isfinite().all():
            raise InputError(
                f"second_moment: expected finite {self.of.noun} of block {layer}, but got NaN or infinity; read the "
                "model in float32, or check its weights"
            )
        content = tensor_hash(moment)
        values = spectrum(moment)
        factored = self._factor(moment) if self.of.factored else None
        state = Conditioning(
            about["tokens"], len(moment), condition_number(values), effective_rank(values),
            None if factored is None else factored.jitter,
        )  # fmt: skip
        known = {
            "schema": SCHEMA, "layer": layer, **self.about[layer], "sample": None, **about, "hash": content,
            "condition_number": state.condition_number, "effective_rank": state.effective_rank, "jitter": state.jitter,
        }  # fmt: skip
        if factored is not None:
            self._write_factor(layer, factored, content)
        text = json.dumps(known, indent=1, ensure_ascii=False) + "\n"
        with hold():  # once the first is there, the second is not written any more
            write_sealed(self.file(layer), {"second_moment": moment}, known, "second_moment.path")
            atomic_write(
                self.file(layer, ".json"), lambda part: part.write_text(text, encoding="utf-8"), "second_moment.path"
            )
        return state

    def read(self, layer: int) -> Tensor:
        """C of one layer, (d, d) float64 on the CPU, checked bit for bit against what was written."""
        about = self.check(layer)
        tensors, sealed = self._tensors(self.file(layer))
        moment = tensors.get("second_moment")
        if moment is None or not (sealed or tensor_hash(moment) == about["hash"]):  # a seal is checked already
            raise self._broken(self.file(layer), "its content is not what was written")
        return moment

    def factored(self, layer: int) -> FactoredSecondMoment:
        """The Cholesky factor of one layer's C, made again where the one beside it does not belong to it."""
        about = self.check(layer)
        with contextlib.suppress(BrokenSeal, OSError):  # made again
            tensors, kept = read_sealed(self.file(layer, ".cholesky.safetensors"))
            if (kept["of"], kept["ridge"]) == (about["hash"], self.ridge):
                return FactoredSecondMoment(tensors["factor"], kept["jitter"])
        factored = self._factor(self.read(layer))
        try:
            self._write_factor(layer, factored, about["hash"])
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)  # a folder that can only be read still serves
        return factored

    def conditioning(self, layer: int) -> Conditioning:
        """What was found of a layer's C when it was written."""
        about = self._header(layer)
        stored = {**about, "width": about[self.of.width_name]}
        return Conditioning(**{name: stored[name] for name in Conditioning.__dataclass_fields__})

    def _factor(self, moment: Tensor) -> FactoredSecondMoment:
        if self.ridge:
            moment = moment.clone()
            moment.diagonal().add_(self.ridge * float(moment.diagonal().mean()))
        return factor_second_moment(moment)

    def _write_factor(self, layer: int, factored: FactoredSecondMoment, content: str) -> None:
        about = {"of": content, "ridge": self.ridge, "jitter": factored.jitter}
        file = self.file(layer, ".cholesky.safetensors")
        write_sealed(file, {"factor": factored.factor}, about, "second_moment.path")

    def _header(self, layer: int) -> dict[str, Any]:
        file = self.file(layer)
        try:
            about: dict[str, Any] = read_about(file) if is_sealed(file) else self._older_header(file)
            about["hash"], about["tokens"]
            named = about.get("of", KEYS.name)
            if named == self.of.name:
                about[self.of.width_name]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._broken(file, str(error) or type(error).__name__) from error
        if named != self.of.name:
            raise InputError(
                f"second_moment.path: expected second moments of {self.of.noun}, but {file} has those of "
                f"{shorten(named)}; delete it, and it is made anew"
            )
        if about.get("schema", 0) > SCHEMA:
            raise InputError(
                f"second_moment.path: {file} was written by a newer editkit ({about['schema']}); update editkit"
            )
        return about

    @staticmethod
    def _older_header(file: Path) -> dict[str, Any]:
        """Of schema 1, whose only hash is of C."""
        with safe_open(file, framework="pt") as stored:
            about: dict[str, Any] = json.loads((stored.metadata() or {})["about"])
        return about

    def _tensors(self, file: Path) -> tuple[dict[str, Tensor], bool]:
        """A file's tensors, and whether they were checked bit for bit."""
        try:
            if is_sealed(file):
                return read_sealed(file)[0], True
            with safe_open(file, framework="pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}, False  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise self._broken(file, str(error)) from error

    @staticmethod
    def _broken(file: Path, cause: str) -> InputError:
        return InputError(
            f"second_moment.path: expected second moments that editkit wrote, but {file} could not be read ({cause}); "
            "delete it, and it is made anew"
        )


class Partial:
    """Sums of an unfinished run: one file, replaced whole, that says how many batches of the text are in it.

    Args:
        file: where; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Replace what was kept."""
        if self.file is not None:
            write_sealed(self.file, tensors, state, "second_moment.path")

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was kept, or None where there is nothing, or nothing whole."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            return read_sealed(self.file)
        except (BrokenSeal, OSError):
            return None

    def remove(self) -> None:
        """Forget it, once what it was for is written."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
            for left in self.file.parent.glob(f".{self.file.name}.*.part"):  # of a process that was killed
                left.unlink(missing_ok=True)
