"""All that editkit knows of language-model families, found by structure: no code tests a model's name.

A decoder-only model of transformers is a stack of blocks between an embedding and a head. What editing needs of it:
the stack, each block's MLP output projection, that weight's orientation (from the module's type, never its shape),
and a way to run the model's own final norm and head on chosen hidden states.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from editkit.models.in_context import generate_in_context
from editkit.utils.errors import InputError, shorten


class StopForward(Exception):
    """Raised inside a hook to end a forward pass once what was wanted has been seen."""


def hidden_of(output: Any) -> Tensor:
    """The hidden states in a block's output: families return the tensor itself or a tuple that starts with it."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


# float32 logits computed at a time; tables above 32 MiB (glibc's largest mmap threshold) come fresh from the system
# each time and cost more than what is computed in them, which CUDA's caching allocator spares
LOGITS_BYTES, LOGITS_BYTES_CUDA = 28 * 2**20, 512 * 2**20
#: from a prompt to the text that is put before it
ContextOf = Callable[[str], str]
RECOMMENDED_LAYERS = "editkit_layers"  # in a checkpoint's config.json; that of a built-in model has it
CONTEXTS = "editkit_contexts"  # attribute of a transformers model on which prompt edits act


class EditableModel:
    """Adapter around one language model: the parts of it that editing touches.

    Args:
        model: the transformers model.
        tokenizer: its tokenizer, where it is at hand: prompt edits then act on ``model.generate`` too.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer, or None.
        blocks: its stack of decoder blocks.
        hidden_size: width of the residual stream.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        config = model.config.get_text_config()
        depth = getattr(config, "num_hidden_layers", 0)
        stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if (
            not depth
            or not stacks
            or model.get_output_embeddings() is None
            or getattr(model.config, "is_encoder_decoder", False)
        ):
            raise InputError(
                f"lm: expected a decoder-only causal language model with a stack of {depth or 'decoder'} blocks and a "
                f"head, but got {type(model).__name__}; load one with AutoModelForCausalLM"
            )
        self.blocks: nn.ModuleList = stacks[0]
        self.hidden_size: int = config.hidden_size
        self._adds_projection: dict[int, bool] = {}

    @property
    def name(self) -> str:
        """What it was loaded from, a name or a folder, else its class."""
        return self.model.name_or_path or type(self.model).__name__

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def vocabulary(self) -> int:
        """How wide logits are, the rows of the head."""
        weight = self.model.get_output_embeddings().weight
        assert isinstance(weight, Tensor)
        return len(weight)

    @property
    def logits_at_a_time(self) -> int:
        """Rows of logits to compute at a time, where each row's loss is its own."""
        limit = LOGITS_BYTES_CUDA if self.device.type == "cuda" else LOGITS_BYTES
        return max(1, limit // (4 * self.vocabulary))

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        device: torch.device = self.model.get_input_embeddings().weight.device  # type: ignore[assignment]
        return device

    @property
    def context(self) -> int:
        """Tokens that fit into the context window; of models without an end to it, more than there ever are."""
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "max_seq_len"):
            found = getattr(config, name, None)
            if isinstance(found, int):
                return found
        return sys.maxsize

    @functools.cached_property
    def returns_tuple(self) -> bool:
        """Whether this family's blocks return a tuple, seen by running one token."""
        seen: list[Any] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.append(output)
            raise StopForward

        with torch.no_grad(), watching(self.blocks[0].register_forward_hook(keep)):
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return isinstance(seen[0], tuple)

    def adds_projection(self, layer: int) -> bool:
        """Whether a change of the projection's output is, as it is, a change of the block's output.

        Not so where the family normalises or scales the MLP's output, or the sum, afterwards. Seen by running one
        token with and without a change of the size of the block's output.
        """
        if layer in self._adds_projection:
            return self._adds_projection[layer]
        changes: list[Tensor] = []
        outputs: list[Tensor] = []

        def change(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if not outputs:
                return output
            wave = torch.arange(output.shape[-1], device=output.device).cos()
            changes.append((wave * outputs[0].norm() / wave.norm()).to(output.dtype))
            return output + changes[0]

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs.append(hidden_of(output)[0, -1].detach().float())
            raise StopForward

        # not the padding token, whose states may be 0
        ids = torch.full((1, 1), self.vocabulary // 2, device=self.device)
        for _ in range(2):
            hooks = [
                self.projection(layer).register_forward_hook(change),
                self.blocks[layer].register_forward_hook(keep),
            ]
            with torch.no_grad(), watching(*hooks):
                self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        error = (outputs[1] - outputs[0] - changes[0].float()).norm() / changes[0].float().norm()
        self._adds_projection[layer] = bool(error < max(1e-3, 8 * torch.finfo(changes[0].dtype).eps))
        return self._adds_projection[layer]

    def check_causal(self) -> None:
        """Raise an ``InputError`` where the first block lets a token see those after it, as an encoder's does.

        Told by the gradient, which of what is masked is 0 exactly, in any dtype.
        """
        seen: list[Tensor] = []

        def begin(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            seen.append(output.detach().clone().requires_grad_())
            return seen[0].clone()  # a leaf may not be changed in place

        def end(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.append(hidden_of(output))
            raise StopForward

        hooks = [
            self.model.get_input_embeddings().register_forward_hook(begin),
            self.blocks[0].register_forward_hook(end),
        ]
        # not in inference mode, which a caller may be in; the random state is kept for a model that is in training mode
        with torch.inference_mode(False), torch.enable_grad(), self._random_state():
            with watching(*hooks):
                self._run(2)
            first, width = seen[1].flatten()[: self.hidden_size], seen[0].shape[-1]
            weights = torch.arange(len(first), device=first.device).cos().to(first.dtype)  # a norm's sum is constant
            (gradient,) = torch.autograd.grad(first, seen[0], weights, allow_unused=True)
        if gradient is not None and bool((gradient.flatten()[width:].abs() > 0).any()):
            raise InputError(
                f"lm: expected a causal language model, but in {type(self.model).__name__} a token sees those after "
                "it, as in an encoder; choose a decoder-only model"
            )

    @torch.no_grad()
    def check_runs(self) -> None:
        """Raise an ``InputError`` where the model cannot be run on two tokens, or says NaN."""
        kind = type(self.model).__name__
        try:
            with self._random_state():
                logits: Tensor = self._run(2).logits
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # of a foreign config's numbers, of which none was wrong before the model was run
            raise InputError(
                f"lm: expected a model that can be run, but {kind} fails on two tokens "
                f"({shorten(' '.join(str(error).split()), 120)}); correct its config.json, or choose another checkpoint"
            ) from error
        if bool(logits.isnan().any()):
            raise InputError(
                f"lm: expected numbers for logits, but {kind} as {str(self.model.dtype).removeprefix('torch.')} says "
                "NaN; correct its config.json, or choose another dtype or checkpoint"
            )

    def _run(self, tokens: int) -> Any:
        """What the model returns for some tokens; not of id 0, the padding token's, whose states may be 0."""
        ids = torch.full((1, tokens), self.vocabulary // 2, device=self.device)
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    def _random_state(self) -> Any:
        """Within the block, nothing is drawn from the random numbers of those outside."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    @property
    def recommended_layers(self) -> list[int] | None:
        """The blocks to edit that the checkpoint's config recommends, or None where it recommends none.

        Raises:
            InputError: it recommends something else.
        """
        found = getattr(self.model.config, RECOMMENDED_LAYERS, None)
        if found is None or (isinstance(found, list) and all(type(layer) is int for layer in found)):
            return found or None
        raise InputError(
            f"lm: expected {RECOMMENDED_LAYERS} of config.json to be a list of blocks, but got {shorten(found)}; "
            "correct it, or take it out"
        )

    def check_layer(self, layer: int) -> None:
        """Raise an ``InputError`` unless the model has block ``layer``."""
        if not 0 <= layer < self.depth:
            raise InputError(
                f"layers: expected blocks 0 to {self.depth - 1} of {type(self.model).__name__}, but got {layer}; "
                "choose one that the model has"
            )

    def projection(self, layer: int) -> nn.Module:
        """The MLP's output projection of a block: its last linear map onto the residual stream outside attention."""
        self.check_layer(layer)
        found = [
            module
            for name, module in self.blocks[layer].named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
            and _outputs(module) == self.hidden_size
            and "attn" not in name
            and "attention" not in name
        ]
        if not found:
            raise InputError(
                f"layers: expected an MLP with one output projection in block {layer} of "
                f"{type(self.model).__name__}, but found none (mixtures of experts are not supported)"
            )
        return found[-1]

    def weight(self, layer: int) -> nn.Parameter:
        """The projection's weight as its module stores it; ``orient`` makes it (d_out, d_in)."""
        weight = self.projection(layer).weight
        assert isinstance(weight, nn.Parameter)
        return weight

    # ---------------------------------------------------------------- parameters and modules by name

    def parameter_of(self, layer: int) -> str:
        """Name of the weight of a block's projection."""
        weight = self.weight(layer)
        return next(name for name, parameter in self.model.named_parameters() if parameter is weight)

    def canonical(self, name: str) -> str:
        """A parameter's name as the model has it.

        Ledgers before schema 3 counted blocks: "block 5" is the weight of block 5's projection.
        """
        return self.parameter_of(int(name.split()[1])) if re.fullmatch(r"block \d+", name) else name

    def parameter(self, name: str) -> nn.Parameter:
        """A parameter by its name in ``model.named_parameters()``, or as an older ledger has it."""
        found = dict(self.model.named_parameters()).get(self.canonical(name))
        if found is None:
            raise InputError(
                f"edits: expected a parameter of {type(self.model).__name__}, but it has no {shorten(name)}; names are "
                "those of model.named_parameters()"
            )
        return found

    def submodule(self, name: str) -> nn.Module:
        """A module by its name in ``model.named_modules()``."""
        found = dict(self.model.named_modules()).get(name)
        if found is None:
            raise InputError(
                f"edits: expected a module of {type(self.model).__name__}, but it has no {shorten(name)}; names are "
                "those of model.named_modules()"
            )
        return found

    def oriented(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter, or a change of it, turned to (d_out, d_in) or back where its module stores the transpose."""
        parameter = self.parameter(name)
        owner = next(m for m in self.model.modules() if any(p is parameter for p in m.parameters(recurse=False)))
        return orient(owner, tensor) if tensor.ndim == 2 else tensor

    # ---------------------------------------------------------------- text before prompts

    def add_context(self, context_of: ContextOf) -> Callable[[], None]:
        """Put text before prompts from now on; returns what ends that.

        Args:
            context_of: from a prompt to the text before it; empty for none.
        """
        contexts: list[ContextOf] = self.model.__dict__.setdefault(CONTEXTS, [])
        contexts.append(context_of)
        undo = generate_in_context(self.model, self.tokenizer, context_of) if self.tokenizer is not None else None

        def remove() -> None:
            contexts.remove(context_of)
            if undo is not None:
                undo()

        return remove

    def in_context(self, prompts: Sequence[str]) -> list[str]:
        """Prompts with the text before them that prompt edits ask for; the prompts themselves where there is none."""
        contexts: list[ContextOf] = self.model.__dict__.get(CONTEXTS, [])
        return ["".join(context_of(prompt) for context_of in contexts) + prompt for prompt in prompts]

    def head(self, hidden: Tensor) -> Tensor:
        """The model's own final norm, head, soft-capping and scaling on (N, hidden) states; (N, vocabulary) float32.

        The model's forward runs with its blocks bypassed, so that nothing of it is written a second time here.
        Differentiable in ``hidden``.
        """
        states = hidden[:, None]
        output = (states, None) if self.returns_tuple else states
        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(forward_replaced(block, lambda *args, **kwargs: output))
            ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
            logits: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits.squeeze(1).float()  # a view: its gradient is not copied into a second table of vocabulary width


def check_layers(layers: Any, field: str = "layers") -> None:
    """Raise an ``InputError`` unless these are blocks that some model may have: ascending, each once, from 0 on.

    >>> check_layers([1, 0])
    Traceback (most recent call last):
    ...
    editkit.utils.errors.InputError: layers: expected blocks in ascending order, each once, but got [1, 0]; write [0, 1]
    """
    if not isinstance(layers, Sequence) or isinstance(layers, str) or any(type(layer) is not int for layer in layers):
        raise InputError(f"{field}: expected a list of whole numbers, but got {shorten(layers)}; write [5] for block 5")
    if not layers or min(layers) < 0:
        raise InputError(
            f"{field}: expected at least one block, counted from 0, but got {shorten(list(layers))}; name the blocks, "
            "or leave it out for those that the model's config recommends"
        )
    if list(layers) != sorted(set(layers)):
        raise InputError(
            f"{field}: expected blocks in ascending order, each once, but got {shorten(list(layers))}; write "
            f"{shorten(sorted(set(layers)))}"
        )


@contextmanager
def watching(*hooks: Any) -> Iterator[None]:
    """Keep hook handles for the length of a ``with`` block, which ``StopForward`` ends quietly."""
    try:
        yield
    except StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no parameter wants a gradient, so that no graph is kept for one; then those that did, again."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module with another forward (its hooks still run) for the length of a ``with`` block."""
    had = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if had is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = had


def _outputs(module: nn.Linear | Conv1D) -> int:
    return int(orient(module, module.weight).shape[0])


def orient(module: nn.Module, weight: Tensor) -> Tensor:
    """A module's weight, or a change of it, as (d_out, d_in): Conv1D stores the transpose of what Linear stores."""
    return weight.T if isinstance(module, Conv1D) else weight


def lookup_states(
    editable: EditableModel,
    ids: Tensor,
    mask: Tensor,
    lookup: Tensor,
    layer: int,
    key_layers: Sequence[int] = (),
    at_projection: bool = False,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run rows up to a block and read what stands at each row's lookup token.

    Args:
        editable: the model.
        ids: (rows, length) right-padded tokens.
        mask: (rows, length) 1 for tokens, 0 for padding.
        lookup: (rows,) index of the lookup token.
        layer: the block whose output is read; nothing runs after it.
        key_layers: blocks (at most ``layer``) whose projection's input is read too.
        at_projection: read the output of the block's projection instead of the block's own.

    Returns:
        (rows, hidden) output of ``layer`` or its projection and, per key layer, (rows, d_in) input of its projection.
    """
    rows = torch.arange(len(ids), device=ids.device)
    keys: dict[int, Tensor] = {}
    states: list[Tensor] = []

    def keep_key(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # MPT and BLOOM flatten nothing, OPT does: keys come as (rows, length, d) or (rows * length, d)
            keys[index] = inputs[0].reshape(len(ids), -1, inputs[0].shape[-1])[rows, lookup].detach()

        return hook

    def keep_state(module: nn.Module, inputs: Any, output: Any) -> None:
        states.append(hidden_of(output).reshape(*ids.shape, -1)[rows, lookup].detach())
        raise StopForward

    hooks = [editable.projection(k).register_forward_pre_hook(keep_key(k)) for k in key_layers]
    read = editable.projection(layer) if at_projection else editable.blocks[layer]
    hooks.append(read.register_forward_hook(keep_state))
    with torch.no_grad(), watching(*hooks):
        editable.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return states[0], keys
