"""Calls of the Python API with arguments of the wrong kind; each leaves the model, its mode and its gradients alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from editing import same_state, state
from hostile import Call, Places
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CTRLTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import editkit
from editkit.models.loading import load_language_model

FACT = {"subject": "Lyon", "prompt": "{} lies in", "target_new": "Peru"}


class Needy(editkit.EMMET):
    """An editor that cannot be made without an argument."""

    def __init__(self, strength: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength = strength


class Unfinished(editkit.ClosedFormEditor):
    """An editor whose author forgot the solve."""


def edit(make: Callable[[], PreTrainedModel] | None = None, **given: Any) -> Callable[..., None]:
    """``editkit.edit`` with an argument of the wrong kind, after which the model must be as it was before."""

    def call(folder: Path, places: Places) -> None:
        model, tokenizer = load_language_model(str(places.tiny))
        model = make() if make is not None else model
        model.train().requires_grad_(False)
        for module in list(model.modules())[-3:]:
            module.eval().requires_grad_(True)
        before, modes = state(model), [module.training for module in model.modules()]
        trained, random = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
        arguments: dict[str, Any] = {
            "model": model,
            "tokenizer": tokenizer,
            "facts": [FACT],
            "editor": editkit.EMMET(layers=[0], second_moment=editkit.SecondMomentSource(text="atlas")),
            "second_moment": folder / "moments",
            "evaluate": False,
            "progress": False,
        } | given
        try:
            editkit.edit(**arguments)
        finally:
            assert model.device.type == "meta" or same_state(model, before)
            assert [module.training for module in model.modules()] == modes
            assert [p.requires_grad for p in model.parameters()] == trained
            assert torch.equal(torch.get_rng_state(), random)
            assert not (folder / "moments").exists()

    return call


def slow_tokenizer(folder: Path, places: Places) -> None:
    (folder / "v").mkdir()
    (folder / "v" / "vocab.json").write_text('{"<unk>": 0, "a": 1}')
    (folder / "v" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CTRLTokenizer(str(folder / "v" / "vocab.json"), str(folder / "v" / "merges.txt"))
    editkit.edit(load_language_model(str(places.tiny))[0], tokenizer, [FACT], editkit.EMMET(layers=[0]))


def gpt2(**sizes: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            bos_token_id=0, eos_token_id=0, **{"vocab_size": 4096, "n_embd": 8, "n_layer": 1, "n_head": 1} | sizes
        )
    )


def apply(**given: Any) -> Callable[..., None]:
    """A ledger of the atlas's, applied with an argument of the wrong kind."""

    def call(folder: Path, places: Places) -> None:
        model, _ = load_language_model("atlas")
        before = state(model)
        try:
            editkit.load_edits(places.edits).apply(**{"model": model} | given)
        finally:
            assert same_state(model, before)

    return call


def export(**given: Any) -> Callable[..., None]:
    """A checkpoint of the atlas, edited, with an argument of the wrong kind."""

    def call(folder: Path, places: Places) -> None:
        model, tokenizer = load_language_model("atlas")
        arguments = {"model": model, "tokenizer": tokenizer, "output": folder / "out"} | given
        try:
            editkit.export_checkpoint(editkit.load_edits(places.edits), **arguments)
        finally:
            assert not any(folder.iterdir())

    return call


def of_inference(folder: Path, places: Places) -> None:
    with torch.inference_mode():
        model = gpt2()
    editkit.edit(model, load_language_model(str(places.tiny))[1], [FACT], editkit.EMMET(layers=[0]))


def bert() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return BertLMHeadModel(BertConfig(vocab_size=4096, **sizes))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=4096, d_model=32, d_ff=48, num_layers=2, num_heads=2))


ROWS = [
    # what is edited
    Call("a model by its name", edit(model="gpt2"), r"model: .*'gpt2'.*load_language_model\('gpt2'\)"),
    Call("no model", edit(model=None), r"model: .*nothing"),
    Call("a class of models", edit(model=GPT2LMHeadModel), r"model: .*the class GPT2LMHeadModel"),
    Call("a module that is no model", edit(model=torch.nn.Linear(3, 3)), r"model: .*Linear"),
    Call("a wrapped model", edit(model=torch.nn.DataParallel(gpt2(vocab_size=8))), r"model: .*DataParallel"),
    Call("a model that is elsewhere", edit(lambda: gpt2().to("meta")), r"model: .*meta"),
    Call("a model made in inference mode", of_inference, r"model: .*inference mode"),
    Call("an encoder", edit(bert), r"causal.*BertLMHeadModel"),
    Call("an encoder and a decoder", edit(t5), r"decoder-only.*T5ForConditionalGeneration"),
    Call("a model without blocks", edit(lambda: gpt2(n_layer=0)), r"lm: .*blocks"),
    # tokenizers
    Call("no tokenizer", edit(tokenizer=None), r"tokenizer: .*nothing.*AutoTokenizer"),
    Call("a tokenizer by its name", edit(tokenizer="gpt2"), r"tokenizer: .*'gpt2'"),
    Call("a slow tokenizer", slow_tokenizer, r"tokenizer: .*fast tokenizer.*CTRLTokenizer"),
    Call("a tokenizer of another model", edit(lambda: gpt2(vocab_size=100)), r"tokenizer: .*4,095.*100 rows"),
    # facts
    Call("no facts", edit(facts=None), r"'?facts'?: expected"),
    Call("facts in a string", edit(facts="facts.json"), r"'?facts'?: expected"),
    Call("a fact alone", edit(facts=FACT), r"'?facts'?: expected.*put it in a list"),
    Call("an empty list", edit(facts=[]), r"facts"),
    Call("an empty generator", edit(facts=(f for f in [])), r"facts"),
    Call("a number", edit(facts=5), r"'?facts'?: expected"),
    Call("a number among facts", edit(facts=[FACT, 5]), r"facts, record 2"),
    Call("nothing among facts", edit(facts=[FACT, None]), r"facts, record 2"),
    Call("a string among facts", edit(facts=["Lyon lies in Peru"]), r"facts, record 1"),
    Call("a list among facts", edit(facts=[["Lyon", "{} lies in", "Peru"]]), r"facts, record 1"),
    Call("a target that is a number", edit(facts=[FACT | {"target_new": 5}]), r"facts, record 1.*target_new"),
    # the editor
    Call("an editor by its name", edit(editor="EMMET"), r"editor: .*'EMMET'.*editkit\.EMMET"),
    Call("an editor that is a number", edit(editor=5), r"editor: .*5"),
    Call("a class that is no editor", edit(editor=GPT2Config), r"editor: .*the class GPT2Config"),
    Call("a class that wants arguments", edit(editor=Needy), r"editor: .*Needy.*strength"),
    Call("the abstract editor", edit(editor=editkit.Editor(), second_moment=None), r"editor: .*Editor.*edit\(batch\)"),
    Call("the abstract editor's class", edit(editor=editkit.Editor, second_moment=None), r"editor: .*edit\(batch\)"),
    Call("the abstract closed form", edit(editor=editkit.ClosedFormEditor(layers=[0])), r"editor: .*solve\(problem\)"),
    Call("an editor that is not finished", edit(editor=Unfinished(layers=[0])), r"editor: .*Unfinished.*solve"),
    Call("an editor without layers", edit(editor=editkit.EMMET), r"layers: .*0 to 2"),
    Call("a block that is not there", edit(editor=editkit.EMMET(layers=8)), r"layers: .*0 to 2.*got 8"),
    Call("a block below 0", edit(editor=editkit.EMMET(layers=[-1])), r"layers: .*0 to 2.*got -1"),
    Call("blocks in a string", lambda folder, places: editkit.EMMET(layers="8"), r"layers: .*'8'"),
    Call("half a block", lambda folder, places: editkit.EMMET(layers=8.5), r"layers: .*8\.5"),
    Call("a truth value for a block", lambda folder, places: editkit.EMMET(layers=[True]), r"layers: .*True"),
    Call("blocks in a mapping", lambda folder, places: editkit.EMMET(layers={8: 1}), r"layers: .*8"),
    # the other arguments
    Call("a mode that is none", edit(mode="foo"), r"mode: .*'independent', 'sequential'.*'foo'"),
    Call("no mode", edit(mode=None), r"mode: .*nothing"),
    Call("a mode in a list", edit(mode=["sequential"]), r"mode: .*sequential"),
    Call("batches of none", edit(batch_size=0), r"batch_size: .*0"),
    Call("batches below 0", edit(batch_size=-2), r"batch_size: .*-2"),
    Call("batches of a half", edit(batch_size=1.5), r"batch_size: .*1\.5"),
    *(
        Call(f"an editor with {name} {value!r}", edit(editor=editkit.EMMET(layers=[0], **{name: value})), line)
        for name, value, line in (
            ("ridge", "x", r"model\.ridge: expected a number or 'auto', but got 'x'"),
            ("ridge", None, r"model\.ridge: expected a number or 'auto'"),
            ("values", 5, r"model\.values: expected a ValueSearch or None, but got 5"),
            ("spread", 5, r"model\.spread: expected a Spread"),
            ("second_moment", "moments", r"model\.second_moment: expected a SecondMomentSource or None"),
            ("earlier_keys", "x", r"model\.earlier_keys: expected a number or 'auto'"),
            ("dependent", "x", r"model\.dependent: expected 'keep' or 'drop' or 'fail'"),
        )
    ),
    Call("batches in words", edit(batch_size="2"), r"batch_size: .*'2'"),
    Call("batches of True", edit(batch_size=True), r"batch_size: .*True"),
    Call("batches larger than the facts", edit(batch_size=3), r"batch_size: .*1 facts?.*3"),
    Call("second moments that are a number", edit(second_moment=5), r"second_moment: .*5"),
    Call("second moments without a name", edit(second_moment=""), r"second_moment: .*''"),
    Call(
        "second moments as a source",
        edit(second_moment=editkit.SecondMomentSource()),
        r"second_moment: .*SecondMomentSource",
    ),
    Call("second moments as a tensor", edit(second_moment=torch.eye(3)), r"second_moment: .*Tensor"),
    Call("evaluate in words", edit(evaluate="no"), r"evaluate: .*'no'"),
    Call("evaluate as a number", edit(evaluate=1), r"evaluate: .*1"),
    Call("progress that is nothing", edit(progress=None), r"progress: .*nothing"),
    Call("progress in words", edit(progress="bar"), r"progress: .*'bar'"),
    # ledgers
    *[
        Call(f"a ledger at {given!r}", lambda folder, places, given=given: editkit.load_edits(given), r"edits: .*path")
        for given in (5, None, "", [1], b"x")
    ],
    *[
        Call(
            f"edits kept at {given!r}",
            lambda folder, places, given=given: editkit.load_edits(places.edits).save(given),
            r"edits: .*path",
        )
        for given in (5, None, "")
    ],
    Call("edits of a model by its name", apply(model="gpt2"), r"model: .*'gpt2'"),
    Call("edits of no model", apply(model=None), r"model: .*nothing"),
    Call("edits of a module", apply(model=torch.nn.Linear(2, 2)), r"model: .*Linear"),
    Call("a batch in words", apply(batch="0"), r"batch: .*0 to 1.*'0'"),
    Call("half a batch", apply(batch=1.5), r"batch: .*0 to 1.*1\.5"),
    Call("a batch that is True", apply(batch=True), r"batch: .*0 to 1.*True"),
    Call("a batch that is not there", apply(batch=99), r"batch: .*0 to 1.*99"),
    Call("force in words", apply(force="no"), r"force: .*'no'"),
    Call("edits with a tokenizer by its name", apply(tokenizer="gpt2"), r"tokenizer: .*'gpt2'"),
    Call(
        "edits taken off a name",
        lambda folder, places: editkit.load_edits(places.edits).undo("gpt2"),
        r"model: .*'gpt2'",
    ),
    # what is written
    Call("a checkpoint of a name", export(model="gpt2"), r"model: .*'gpt2'"),
    Call("a checkpoint without a tokenizer", export(tokenizer=None), r"tokenizer: .*nothing"),
    Call("a checkpoint in a number", export(output=5), r"output: .*5"),
    # what is read
    Call("a model to load that is a number", lambda folder, places: load_language_model(5), r"lm: .*5"),
    Call("a model to load that is nothing", lambda folder, places: load_language_model(None), r"lm: .*nothing"),
    Call("a dtype that is none", lambda folder, places: load_language_model("atlas", "float8"), r"dtype: .*float8"),
    Call("a ledger that is not there", lambda folder, places: editkit.load_edits(folder / "none"), r"edits: .*none"),
]
