"""Arguments of ``editkit.edit`` whose meaning is plain, and what an edited model says of itself.

Those that are refused are in ``tests/hostile/table/python.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from editing import Loaded, facts, quiet_edit, same, weights
from transformers import PreTrainedTokenizerBase

import editkit
from editkit.cli.main import main
from editkit.models.loading import load_language_model


def test_a_class_is_its_editor_with_the_defaults(atlas: Loaded, moments: Path) -> None:
    class Quick(editkit.EMMET):
        def __init__(self) -> None:
            super().__init__(values=editkit.ValueSearch(num_steps=3))
            self.second_moment.num_tokens = 8000

    before = weights(atlas[0])
    with editkit.edit(*atlas, facts(2), Quick, moments, evaluate=False, progress=False) as edited:
        assert edited.edits.about["layers"] == atlas[0].config.editkit_layers
        assert not same(atlas[0], before)
    assert same(atlas[0], before)


def test_one_block_is_a_list_of_it() -> None:
    editor = editkit.EMMET(layers=1, ridge=0.5)
    assert editor.layers == [1]
    assert editor.hparams["layers"] == [1]
    assert editkit.ClosedFormEditor(layers=0).layers == [0]


@pytest.mark.parametrize("given", ["--model.layers=2", "--model.init_args.layers=[2]"])
def test_one_block_on_the_command_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "quickstart", given, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["layers"] in (2, [2])


def test_an_edited_model_says_what_it_is(atlas: Loaded, moments: Path) -> None:
    editor = editkit.EMMET(layers=1, values=editkit.ValueSearch(num_steps=3))
    edited = quiet_edit(atlas, editor, moments, facts(3), batch_size=2)
    assert repr(edited) == "<EditedModel: GPT2LMHeadModel by EMMET, 3 facts in 2 batches, layers [1]>"
    edited.undo(batch=1)
    assert repr(edited) == "<EditedModel: GPT2LMHeadModel by EMMET, 2 facts in 1 batch, layers [1]>"
    edited.undo()
    assert repr(edited) == "<EditedModel: GPT2LMHeadModel by EMMET, 2 facts in 1 batch, layers [1], undone>"


def test_each_module_is_left_in_its_mode(atlas: Loaded, moments: Path) -> None:
    model = atlas[0].train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    quiet_edit(atlas, editkit.EMMET(layers=1, values=editkit.ValueSearch(num_steps=3)), moments, facts(1))
    assert [module.training for module in model.modules()] == modes


def test_an_editor_goes_from_one_model_to_another(
    atlas: Loaded, moments: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    editor = editkit.EMMET(layers=1, values=editkit.ValueSearch(num_steps=3))
    other = load_language_model("atlas")
    first = quiet_edit(atlas, editor, moments, facts(1))
    second = quiet_edit(other, editor, moments, facts(1))
    assert same(atlas[0], weights(other[0]))
    first.undo(), second.undo()
    assert same(other[0], weights(load_language_model("atlas")[0]))
    assert same(atlas[0], weights(other[0]))
