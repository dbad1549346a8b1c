"""What of a model several processes share out, told from its spec: before anything is built or started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from mmformer.errors import InputError
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.feedforward import DenseFeedForwardSpec, FeedForwardSpec
from mmformer.nn.mixer import MixerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.stack import StackSpec

ContextMethod = Literal["gather", "ulysses"]
"""How attention reaches what other processes have of a row."""


class Shared(NamedTuple):
    """Something that is shared out evenly."""

    field: str
    number: int


def shares_out(part: MixerSpec | FeedForwardSpec | None, stack: StackSpec) -> bool:
    """Whether a part of a stack's layers is shared out; if not, each process computes it in whole.

    Blocks of a sparse pattern have the biases of all heads with them, in one plan for all layers.
    """
    if isinstance(part, AttentionSpec):
        return part.pattern is None or "bias" not in stack.position.needs
    return isinstance(part, DenseFeedForwardSpec)


def check_tensor(model: ModelSpec, tensor: int) -> None:
    """Refuse a model that so many processes cannot compute together.

    Raises:
        InputError: what does not divide, or that there is nothing to share out.
    """
    found = [shared for name, stack in model.stacks.items() for shared in _shared(name, stack)]
    _require_divisor("tensor", tensor, found)
    if not found:
        raise InputError(
            f"parallel.tensor is {tensor}, but no layer of the model has softmax attention or a dense feed-forward to "
            f"share out: set it to 1, and parallel.shard in its place."
        )


def check_experts(model: ModelSpec, expert: int) -> None:
    """Refuse a model whose experts so many processes cannot share out.

    Raises:
        InputError: what does not divide, or that it has none.
    """
    found = [shared for name, stack in model.stacks.items() for shared in _experts(name, stack)]
    _require_divisor("expert", expert, found)
    if not found:
        raise InputError(
            f"parallel.expert is {expert}, but no layer of the model is a mixture of experts: set it to 1, and "
            f"parallel.shard in its place."
        )


def check_context(model: ModelSpec, context: int, method: ContextMethod, tensor: int) -> None:
    """Refuse a model whose rows so many processes cannot share out.

    Raises:
        InputError: what of it needs whole rows, or heads that do not divide.
    """
    told = f"parallel.context is {context}, which shares out the places of each row"
    instead = "set parallel.context to 1, and parallel.shard or parallel.tensor in its place"
    for name in model.encoders:
        raise InputError(
            f"{told}: that is made for decoders that read no encoder, as language models are, where a place sees those "
            f"before it alone. But the model has the encoder '{name}': {instead}."
        )
    for name, stack in model.stacks.items():
        for found, fix in _of_whole_rows(stack, method):
            raise InputError(f"{told}, but model.stacks.{name}.{found}: {fix}, or {instead}.")
        for shared in _shared(name, stack) if method == "ulysses" else ():
            if "heads" in shared.field and shared.number % (context * tensor):
                raise InputError(
                    f"{shared.field} is {shared.number}, which parallel.context × parallel.tensor, {context} × "
                    f"{tensor}, does not divide, but where parallel.context_method is ulysses each process attends "
                    f"with as many of them: set it to gather, or {shared.field} to a multiple of {context * tensor}."
                )


def _of_whole_rows(stack: StackSpec, method: ContextMethod) -> Iterator[tuple[str, str]]:
    """What of a stack is computed of whole rows, or of all heads, and what to do about it."""
    for layer in dict.fromkeys(stack.layers):
        mixer, feedforward = layer.mixer, layer.feedforward
        if not isinstance(mixer, AttentionSpec):
            yield f"layer.mixer is {type(mixer).__name__}, which reaches no places of other processes", "take attention"
        if not isinstance(feedforward, DenseFeedForwardSpec | None):
            yield (
                f"layer.feedforward is {type(feedforward).__name__}, which counts the tokens of rows",
                "take a dense one",
            )
        if method == "ulysses" and not shares_out(mixer, stack):
            yield "position biases the scores of all heads under a pattern", "set parallel.context_method to gather"
    if stack.drop_path:
        yield f"drop_path is {stack.drop_path}, and a row skips a branch in whole", "set it to 0"
    if stack.halting is not None:
        yield "halting counts the tokens of rows", "set it to null"


def _require_divisor(dimension: str, processes: int, found: list[Shared]) -> None:
    for field, number in found:
        if number % processes:
            raise InputError(
                f"{field} is {number}, which parallel.{dimension}, {processes}, does not divide: each process computes "
                f"as many of them. Set parallel.{dimension} to a divisor of {number}, or {field} to a multiple of "
                f"{processes}."
            )


def _experts(name: str, stack: StackSpec) -> Iterator[Shared]:
    for layer in dict.fromkeys(stack.layers):
        if isinstance(layer.feedforward, MixtureOfExpertsSpec):
            yield Shared(f"model.stacks.{name}.layer.feedforward.experts", layer.feedforward.experts)


def _shared(name: str, stack: StackSpec) -> Iterator[Shared]:
    for layer in dict.fromkeys(stack.layers):
        for part in (layer.mixer, layer.cross):
            if isinstance(part, AttentionSpec) and shares_out(part, stack):
                which = "mixer" if part is layer.mixer else "cross"
                where = f"model.stacks.{name}.layer.{which}"
                yield Shared(f"{where}.heads", part.heads)
                yield Shared(f"{where}.key_value_heads", part.key_value_heads or part.heads)
        hidden = layer.feedforward
        if isinstance(hidden, DenseFeedForwardSpec):
            yield Shared(f"model.stacks.{name}.layer.feedforward.hidden_width", hidden.hidden(stack.width))
