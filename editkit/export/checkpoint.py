"""An edited model as a Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.edits import Edits
from editkit.export.card import model_card
from editkit.export.changes import changes_of
from editkit.models.fingerprint import fingerprint
from editkit.models.soundness import check_model, check_tokenizer
from editkit.utils.files import atomic_write_folder, check_new_folder, user_path
from editkit.utils.manifest import write_manifest
from editkit.utils.quiet import no_loading_bars

LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")"""


def export_checkpoint(
    edits: Edits,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    lm: str = "",
    batch: int | None = None,
) -> Path:
    """Write the edited model, its tokenizer and a model card; ``AutoModelForCausalLM.from_pretrained`` gives its bits.

    ``editkit.json`` beside them has a hash of each file, by which editkit notices when it loads one that was altered.

    Args:
        edits: the ledger.
        model: the unedited model; it is edited for as long as it takes, and then as before, bit for bit.
        tokenizer: its tokenizer.
        output: folder to make; it appears only once it is whole.
        lm: name of the unedited model for the card; default the one under which it was loaded.
        batch: of independent batches, the one to apply; of sequential ones, the last.

    Returns:
        The folder.

    Raises:
        InputError: there is something in the folder, it cannot be written, the edits are not of weights, or what
            ``Edits.apply`` raises.
    """
    check_model(model)
    check_tokenizer(tokenizer, field="tokenizer")
    folder = check_new_folder(user_path(output, "output"), "output")
    changes_of(edits, batch)  # or there is nothing to ship
    name = lm or model.config.name_or_path or type(model).__name__
    edits.apply(model, batch)
    try:
        edited = fingerprint(model)
        card = model_card(edits, name, batch, edited, "transformers", f"the weights of {name}", LOAD)

        def write(part: Path) -> None:
            with no_loading_bars():
                model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            (part / "README.md").write_text(card, encoding="utf-8")
            write_manifest(part)

        atomic_write_folder(folder, write, "output")
    finally:
        edits.undo(model)
    return folder
