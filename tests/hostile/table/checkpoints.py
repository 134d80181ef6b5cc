"""Checkpoints: files that are broken, weights that are not all there, tokenizers that do not fit, other kinds of model.

Each is refused before a run folder appears, by ``fit`` and, one of each kind, by ``covariance`` and ``export``.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile import Command, Files, Places
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

FIT = "fit --config quickstart --model.layers=[0] --data.num_facts=2 --model.second_moment.text=atlas --model.lm=lm"
VALIDATE = "validate --data.num_facts=2 --model.layers=[0] --model.lm=lm"
COVARIANCE = "covariance --layers=[0] --second_moment.path=kept --second_moment.text=atlas --lm=lm"
EXPORT = "export --edits $edits --output out --lm=lm"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARY = 4096


def copied(*changes: Callable[[Path], object]) -> Files:
    """The tiny checkpoint as ``lm``, with changes."""

    def fill(folder: Path, places: Places) -> None:
        shutil.copytree(places.tiny, folder / "lm")
        for change in changes:
            change(folder / "lm")

    return fill


def raw(name: str, content: bytes | str) -> Callable[[Path], object]:
    """A file with other content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda lm: (lm / name).write_bytes(data)


def without(*names: str) -> Callable[[Path], object]:
    """Files that are not there."""
    return lambda lm: [(lm / name).unlink(missing_ok=True) for name in names]


def cut(name: str, share: float) -> Callable[[Path], object]:
    """A file that ends too early."""
    return lambda lm: (lm / name).write_bytes((d := (lm / name).read_bytes())[: int(len(d) * share)])


def config(**fields: Any) -> Callable[[Path], object]:
    """Other fields of config.json; None takes one out."""

    def change(lm: Path) -> None:
        found = json.loads((lm / "config.json").read_text()) | fields
        kept = {name: value for name, value in found.items() if value is not None}
        (lm / "config.json").write_text(json.dumps(kept))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Other tensors."""

    def rewrite(lm: Path) -> None:
        tensors = {name: t.clone() for name, t in load_file(lm / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, lm / WEIGHTS, {"format": "pt"})

    return rewrite


def sharded(lm: Path) -> None:
    """Two files and an index."""
    tensors = load_file(lm / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, own in parts.items():
        save_file({name: tensors[name].clone() for name in own}, lm / file, {"format": "pt"})
    table = {name: file for file, own in parts.items() for name in own}
    (lm / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (lm / WEIGHTS).unlink()


def index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Another index of the shards."""

    def rewrite(lm: Path) -> None:
        sharded(lm)
        found = json.loads((lm / INDEX).read_text())
        change(found)
        (lm / INDEX).write_text(json.dumps(found))

    return rewrite


def instead(make: Callable[[], PreTrainedModel]) -> Callable[[Path], object]:
    """Another model in the place of the tiny one, with the same tokenizer."""

    def change(lm: Path) -> None:
        (lm / WEIGHTS).unlink()
        torch.manual_seed(0)
        make().save_pretrained(lm)

    return change


def bert() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes))


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=48, num_layers=2, num_heads=2))


def bart() -> PreTrainedModel:
    sizes = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, d_model=32, **sizes, **heads))


def llama() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))


def pickled(lm: Path) -> None:
    torch.save(load_file(lm / WEIGHTS), lm / "pytorch_model.bin")
    (lm / WEIGHTS).unlink()


def drop(part: str) -> Callable[[Path], object]:
    return weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name])


def put(name: str, value: float) -> Callable[[Path], object]:
    return weights(lambda tensors: tensors[name].view(-1)[-1:].fill_(value))


def add(name: str, *shape: int) -> Callable[[Path], object]:
    return weights(lambda tensors: tensors.__setitem__(name, torch.ones(shape)))


def cast(name: str, dtype: torch.dtype) -> Callable[[Path], object]:
    return weights(lambda tensors: tensors.__setitem__(name, tensors[name].to(dtype)))


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Another definition of the tokenizer."""

    def rewrite(lm: Path) -> None:
        found = json.loads((lm / "tokenizer.json").read_text())
        change(found)
        (lm / "tokenizer.json").write_text(json.dumps(found))

    return rewrite


def change_tokenizer_config(**fields: Any) -> Callable[[Path], object]:
    def change(lm: Path) -> None:
        file = lm / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def context_of_one(lm: Path) -> None:
    config(n_positions=1)(lm)
    weights(lambda t: t.update({"transformer.wpe.weight": t["transformer.wpe.weight"][:1].clone()}))(lm)


#: a module that would leave a file behind if it were ever run
FOREIGN = (
    "open('ran', 'w').close()\nfrom transformers import *\nclass C(GPT2Config): pass\nclass M(GPT2LMHeadModel): pass\n"
)
MLP = "transformer.h.1.mlp.c_proj.weight"


def row(name: str, line: str, *changes: Callable[[Path], object], by: str = EXPORT) -> Command:
    return Command(name, by, line, copied(*changes))


def rows(name: str, line: str, *changes: Callable[[Path], object]) -> list[Command]:
    """By every command that loads a model; ``export`` is the quickest of them."""
    commands = {"export": EXPORT, "covariance": COVARIANCE, "fit": FIT, "validate": VALIDATE}
    return [row(f"{name}, {command}", line, *changes, by=typed) for command, typed in commands.items()]


ROWS = [
    # files of weights
    *rows("truncated weights", r"lm: .*model\.safetensors", cut(WEIGHTS, 0.5)),
    row("weights of a few bytes", r"lm: .*model\.safetensors", cut(WEIGHTS, 0.0001)),
    row("garbage weights", r"lm: .*model\.safetensors", raw(WEIGHTS, b"\x93garbage" * 300)),
    row("empty weights", r"lm: .*model\.safetensors", raw(WEIGHTS, b"")),
    row("a huge header", r"lm: .*model\.safetensors", raw(WEIGHTS, struct.pack("<Q", 1 << 60) + b"{}")),
    row("a header that is not JSON", r"lm: .*model\.safetensors", raw(WEIGHTS, struct.pack("<Q", 8) + b"notjson!")),
    row(
        "a pointer of Git LFS",
        r"lm: .*model\.safetensors",
        raw(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
    ),
    row("weights are a folder", r"lm: .*model\.safetensors", without(WEIGHTS), lambda lm: (lm / WEIGHTS).mkdir()),
    row("no weights", r"lm: .*safetensors", without(WEIGHTS)),
    row("pickled weights", r"lm: .*pytorch_model\.bin", pickled),
    row("no tensors", r"lm: .*lacks lm_head\.weight|lm: .*lacks transformer", weights(lambda tensors: tensors.clear())),
    row("another shape", r"lm: .*transformer\.h\.1\.mlp\.c_proj\.weight .*\(128, 32\).*\(5, 7\)", add(MLP, 5, 7)),
    row("a transposed weight", r"lm: .*c_proj\.weight .*\(128, 32\).*\(32, 128\)", add(MLP, 32, 128)),
    row("a shard that is missing", r"lm: .*model-2\.safetensors", sharded, without("model-2.safetensors")),
    row("a truncated shard", r"lm: .*model-2\.safetensors", sharded, cut("model-2.safetensors", 0.9)),
    row("a garbage shard", r"lm: .*model-1\.safetensors", sharded, raw("model-1.safetensors", "garbage")),
    row("an index that is not JSON", r"lm: .*index\.json", sharded, raw(INDEX, "{weights")),
    row("an empty index", r"lm: .*index\.json", sharded, raw(INDEX, "")),
    row("an index that is a list", r"lm: .*index\.json", sharded, raw(INDEX, "[]")),
    row("an index without a map", r"lm: .*weight_map in .*index\.json", index(lambda found: found.pop("weight_map"))),
    row(
        "an index whose map is empty",
        r"lm: .*weight_map in .*index\.json",
        index(lambda found: found["weight_map"].clear()),
    ),
    row("an index of numbers", r"lm: .*index\.json", index(lambda found: found["weight_map"].update({MLP: 3}))),
    row(
        "an index that leads outside",
        r"lm: .*index\.json.*\.\./",
        index(lambda found: found["weight_map"].update({MLP: "../lm/model-1.safetensors"})),
    ),
    row(
        "an index with a tensor that is not there",
        r"lm: .*model-1\.safetensors.*ghost\.weight",
        index(lambda found: found["weight_map"].update({"ghost.weight": "model-1.safetensors"})),
    ),
    # what the weights are
    *rows("a NaN", r"lm: .*transformer\.h\.1\.mlp\.c_proj\.weight.*not finite", put(MLP, float("nan"))),
    row("an infinity", r"lm: .*transformer\.wte\.weight.*not finite", put("transformer.wte.weight", float("-inf"))),
    row("a NaN in a bias", r"lm: .*transformer\.ln_f\.bias.*not finite", put("transformer.ln_f.bias", float("nan"))),
    Command(
        "too large for float16", EXPORT + " --dtype=float16", r"lm: .*c_proj\.weight.*float16", copied(put(MLP, 1e30))
    ),
    row("integers", r"lm: .*c_proj\.weight.*I32", cast(MLP, torch.int32)),
    row("truth values", r"lm: .*c_proj\.weight.*BOOL", cast(MLP, torch.bool)),
    row("complex numbers", r"lm: .*c_proj\.weight.*C64", cast(MLP, torch.complex64)),
    # parameters that are not there, and too many
    *rows("a block that is missing", r"lm: .*transformer\.h\.1\.attn\.c_attn\.bias.* and 9 more", drop(".h.1.")),
    row("a parameter that is missing", r"lm: .*transformer\.h\.1\.mlp\.c_proj\.weight", drop(MLP)),
    row("no embeddings", r"lm: .*transformer\.wte\.weight", drop("wte")),
    row("an untied head that is missing", r"lm: .*lm_head\.weight", config(tie_word_embeddings=False)),
    row("more blocks in the config", r"lm: .*transformer\.h\.3\.", config(n_layer=4)),
    row("fewer blocks in the config", r"lm: expected 2 blocks.*transformer\.h\.2\.", config(n_layer=2)),
    row(
        "weights of another architecture",
        r"lm: .*transformer\.",
        lambda lm: save_file(
            {name: t.contiguous() for name, t in llama().state_dict().items()}, lm / WEIGHTS, {"format": "pt"}
        ),
    ),
    row("a config of another architecture", r"lm: ", config(model_type="opt")),
    Command(
        "a tensor of no use",
        COVARIANCE + " --second_moment.num_tokens=300 --second_moment.max_length=32",
        r"lm: .*v_head\.weight",
        copied(add("v_head.weight", 32, 1)),
        code=0,
    ),
    # the config
    row("no config", r"lm: .*config\.json", without("config.json")),
    *rows("a config that is not JSON", r"lm: .*config\.json", raw("config.json", "{'a': 1}")),
    row("an empty config", r"lm: .*config\.json", raw("config.json", "")),
    row("a binary config", r"lm: .*config\.json", raw("config.json", b"\xff\xfe\x00\x80")),
    row("a config that is a list", r"lm: .*config\.json", raw("config.json", "[1, 2]")),
    row("a deep config", r"lm: .*config\.json", raw("config.json", "[" * 100_000)),
    row("no model_type", r"lm: .*config\.json.*model_type", config(model_type=None, architectures=None)),
    row("an unknown model_type", r"lm: .*model_type.*config\.json.*gpt99", config(model_type="gpt99")),
    row("a model_type that is a number", r"lm: .*model_type.*config\.json", config(model_type=5)),
    row("a model_type of pictures", r"lm: .*vit", config(model_type="vit")),
    row("no blocks", r"lm: .*number of blocks.*got 0", config(n_layer=0)),
    row("fewer than no blocks", r"lm: .*number of blocks.*got -3", config(n_layer=-3)),
    row("blocks without end", r"lm: .*10000000000", config(n_layer=10**10)),
    row("width 0", r"lm: ", config(n_embd=0)),
    row("a width below 0", r"lm: ", config(n_embd=-32)),
    row("a width without end", r"lm: ", config(n_embd=2**40)),
    row("no heads", r"lm: ", config(n_head=0)),
    row("heads that do not divide", r"lm: ", config(n_head=5)),
    row("a vocabulary without end", r"lm: ", config(vocab_size=10**12)),
    row("a vocabulary that takes the memory", r"lm: ", config(vocab_size=4 * 10**8)),
    row("a vocabulary below 0", r"lm: ", config(vocab_size=-1)),
    row("a context without end", r"lm: ", config(n_positions=10**9)),
    row("a width in words", r"lm: ", config(n_embd="wide")),
    row("blocks in words", r"lm: ", config(n_layer="many")),
    row("an activation that is none", r"lm: .*swoosh", config(activation_function="swoosh")),
    row("a dtype that is none", r"lm: .*float99", config(dtype="float99")),
    row("attention that is none", r"lm: ", config(attn_implementation="telepathy")),
    row("a context of one token", r"lm: .*two tokens", context_of_one),
    row("a norm without a number", r"lm: .*NaN", config(layer_norm_epsilon=float("nan"))),
    row(
        "blocks recommended in words",
        r"lm: .*editkit_layers.*'all'",
        config(editkit_layers="all"),
        by=COVARIANCE.replace("--layers=[0] ", ""),
    ),
    row("weights under another name", r"lm: .*transformers_weights", config(transformers_weights="other.safetensors")),
    row(
        "code for generation",
        r"edits",
        lambda lm: (lm / "custom_generate").mkdir(),
        raw("custom_generate/generate.py", FOREIGN),
    ),
    row("a generation config that is a list", r"lm: .*generation_config\.json", raw("generation_config.json", "[]")),
    row("a generation config that is not JSON", r"lm: .*generation_config\.json", raw("generation_config.json", "{")),
    row(
        "a quantised model",
        r"lm: .*quantization_config",
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
    ),
    row("an adapter in it", r"lm: .*adapter_config\.json", raw("adapter_config.json", "{}")),
    # foreign code
    *rows(
        "code of its own",
        r"lm: .*auto_map.*not run",
        config(auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        raw("own.py", FOREIGN),
    ),
    row(
        "code of its own alone",
        r"lm: .*auto_map.*not run",
        config(auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}, model_type="own"),
        raw("own.py", FOREIGN),
    ),
    row(
        "a tokenizer with code of its own",
        r"lm: .*tokenizer_config\.json.*auto_map.*not run",
        raw("tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["own.T", "own.T"]}})),
        raw("own.py", FOREIGN),
    ),
    # the tokenizer
    row("no tokenizer", r"lm: .*tokenizer", without("tokenizer.json", "tokenizer_config.json")),
    *rows("no tokenizer.json", r"lm: .*tokenizer", without("tokenizer.json")),
    row("a garbage tokenizer", r"lm: .*tokenizer", raw("tokenizer.json", b"\x00\x01garbage")),
    row("an empty tokenizer.json", r"lm: .*tokenizer", raw("tokenizer.json", "")),
    row("a tokenizer.json without a model", r"lm: .*tokenizer", raw("tokenizer.json", "{}")),
    row("a truncated tokenizer", r"lm: .*tokenizer", cut("tokenizer.json", 0.5)),
    row("a tokenizer_config.json that is not JSON", r"lm: .*tokenizer", raw("tokenizer_config.json", "{")),
    row("a tokenizer_config.json that is a list", r"lm: .*tokenizer", raw("tokenizer_config.json", "[]")),
    row("a tokenizer without words", r"lm: .*tokenizer", tokenizer(lambda t: t["model"].update(vocab={}, merges=[]))),
    row(
        "a vocabulary without its merges",
        r"lm: .*tokenizer",
        lambda lm: (lm / "vocab.json").write_text(
            json.dumps(json.loads((lm / "tokenizer.json").read_text())["model"]["vocab"])
        ),
        without("tokenizer.json", "tokenizer_config.json"),
    ),
    row(
        "a slow tokenizer",
        r"lm: .*fast tokenizer",
        without("tokenizer.json"),
        raw("tokenizer_config.json", json.dumps({"tokenizer_class": "CTRLTokenizer"})),
        raw("vocab.json", json.dumps({"<unk>": 0, "a": 1, "b": 2})),
        raw("merges.txt", "#version: 0.2\na b\n"),
    ),
    row(
        "a context of a tokenizer in words",
        r"lm: .*tokenizer.*fails",
        change_tokenizer_config(model_max_length="long"),
    ),
    row(
        "an end of text beyond the embeddings",
        r"lm: .*tokenizer.*4,096.*4,096 rows",
        change_tokenizer_config(eos_token="<the end>"),
    ),
    row(
        "more tokens than embeddings",
        r"lm: .*tokenizer.*\d+.*1,000 rows",
        weights(lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"][:1000].clone()})),
        config(vocab_size=1000),
    ),
    # other kinds of model
    *rows("an encoder", r"lm: .*BertLMHeadModel", instead(bert)),
    row("an encoder and a decoder", r"lm: .*encoder.*T5|lm: .*t5", instead(t5)),
    row("an encoder with a decoder for itself", r"lm: .*encoder.*decoder", instead(bart)),
    # names
    Command("a file", EXPORT, r"lm: .*lm.* is a file", {"lm": "x"}),
    Command("an empty folder", EXPORT, r"lm: .*config\.json", {"lm/notes.txt": "x"}),
    Command("no name", EXPORT.replace("=lm", "="), r"lm: "),
    Command("a home that is nobody's", EXPORT.replace("=lm", "=~nobody-at-all/lm"), r"lm: .*nobody-at-all"),
    Command("a folder at home that is not there", EXPORT.replace("=lm", "=~/no/such/folder"), r"lm: .*no/such/folder"),
    Command("a name too long for a file", EXPORT.replace("=lm", "=" + "m" * 5000), r"lm: "),
    Command("a name that is none", EXPORT.replace("=lm", "=a/b/c/d"), r"lm: .*a/b/c/d"),
    Command("a name with a space", EXPORT.replace("=lm", "='my model'"), r"lm: .*my model"),
    Command(
        "a hub that is not reached",
        EXPORT.replace("=lm", "=nobody/nothing"),
        r"lm: .*nobody/nothing",
    ),
    Command(
        "a hub that is not reached, covariance", COVARIANCE.replace("=lm", "=nobody/nothing"), r"lm: .*nobody/nothing"
    ),
    Command("a hub that is not reached, fit", FIT.replace("=lm", "=nobody/nothing"), r"lm: .*nobody/nothing"),
]
