"""What a run costs, told before it starts: its updates, as they are made in training, on tensors without data."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmformer.adapters.adapter import attach
from mmformer.models.decoder import Decoder
from mmformer.models.model import Model
from mmformer.nn.router import rebalance, take_excess
from mmformer.nn.stack import Stack
from mmformer.parallel.checkpointing import checkpoint_layers
from mmformer.parallel.clipping import clip_gradients
from mmformer.scaling.accelerator import as_on_an_accelerator
from mmformer.scaling.cost import Sizes, UpdateCost
from mmformer.scaling.meter import Meter, Weightless
from mmformer.scaling.part import take_part
from mmformer.training.freeze import freeze
from mmformer.training.run import RunSpec
from mmformer.training.stand_in import Lengths, stand_in
from mmformer.training.update import add_gradient, in_precision
from mmformer.types import Batch, Text, Tokens


class Cache(NamedTuple):
    """What decoding one text keeps, at its longest, in float32."""

    length: int  # tokens of the text
    bytes: int  # keys and values, or states
    read: int  # bytes of what it reads of encoders


class PlannedRun:
    """A run whose weights have no data.

    Args:
        run: the weights that it begins with are not looked for.
        lengths: of texts and sounds.
        tensor: processes that share out heads and hidden units; this is one of them.
        accelerator: whether attention is computed as on a GPU; False: as on a CPU.

    Attributes:
        rows: stack -> tokens of a row, the longest that went through it so far.
        causal: stacks that ran causally.
    """

    def __init__(self, run: RunSpec, lengths: Lengths = Lengths(), tensor: int = 1, accelerator: bool = True) -> None:
        self.run, self.lengths, self.made = run, lengths, Weightless()
        self._as = as_on_an_accelerator if accelerator else nullcontext
        self.model: Model = self.made.module(run.model.build)
        if tensor > 1:
            take_part(self.model, tensor, self.made)
        if run.adapters:
            attach(self.model, run.adapters, run.seed)
        freeze(self.model, run.freeze)
        if run.parallel.activation_checkpointing is not None:
            checkpoint_layers(self.model, run.parallel.activation_checkpointing)
        self.rows: dict[str, int] = {}
        self.causal: set[str] = set()
        for name, stack in self.model.stacks.items():
            stack.register_forward_pre_hook(partial(self._look, name), with_kwargs=True)
        self._costs: dict[int, UpdateCost] = {}
        self.average = None if run.ema is None else run.ema.build(self.model)
        self.optimizer = run.optimizer.build(self.model)
        for parameter in self._trained():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # makes its state
        self.optimizer.zero_grad()

    def cost(self, samples: int) -> UpdateCost:
        """Of one update of so many samples on one device; where sources take turns, that of the dearest.

        Raises:
            InputError: what the model does depends on values.
        """
        if samples not in self._costs:
            with self._as():
                costs = [self._cost(batch) for batch in self._batches(samples)]
            self._costs[samples] = max(costs, key=lambda cost: cost.peak)
        return self._costs[samples]

    def caches(self) -> dict[str, Cache]:
        """What decoding keeps for one text, by decoder."""
        found = {}
        for batch in self._batches(1):
            with self._as(), Meter(), torch.no_grad():
                read = self.model(batch, decode=False).tokens if _encodes(self.model, batch) else {}
                for name, decoder in self.model.decoders.items():
                    assert isinstance(decoder, Decoder)
                    if name not in found and decoder.spec.reads.keys() <= read.keys():
                        found[name] = self._cache(decoder, {source: read[source] for source in decoder.spec.reads})
        return found

    def _cache(self, decoder: Decoder, read: dict[str, Tokens]) -> Cache:
        stack, most = self.model.stack_of(decoder.spec.stack), decoder.spec.tokenizer.context_length
        text = Text(torch.full((1, most), decoder.tokenizer.start), torch.tensor([most]))
        state = decoder(text, read, stack, state=stack.empty_state()).state
        tensors = [value for value in tree_leaves(state) if isinstance(value, Tensor)]
        # What is there twice counts once; keys and values may lie side by side in one piece of memory.
        kept = {(value.untyped_storage()._cdata, value.storage_offset()): value for value in tensors}
        return Cache(most, _bytes(kept.values()), _bytes(tokens.x for tokens in read.values()))

    def _batches(self, samples: int) -> list[Batch]:
        """One of each kind that sources make."""
        kinds = {source.kind: source for source in reversed(self.run.data.each())}.values()
        return [stand_in(self.run, source, samples, self.lengths, self.made.tensor) for source in kinds]

    def _look(self, name: str, _: nn.Module, given: tuple[Tokens], named: dict[str, Any]) -> None:
        self.rows[name] = max(self.rows.get(name, 0), given[0].x.shape[1])
        if named.get("causal"):
            self.causal.add(name)

    def _cost(self, batch: Batch) -> UpdateCost:
        sizes = self.sizes()
        held = [*self.model.parameters(), *self.model.buffers(), *self._state()]
        meter = Meter([*held, *_tensors(batch)])
        backward = 0

        def carry(loss: Tensor) -> None:
            nonlocal backward
            done = meter.flops
            loss.backward()  # type: ignore[no-untyped-call]
            backward += meter.flops - done

        hooks = [self._marking(meter, parameter) for parameter in self._trained()]
        objectives = {name: spec.build() for name, spec in self.run.objectives.items()}
        with meter, in_precision(self.run, next(self.model.parameters()).device.type):
            add_gradient(self.run, self.model, objectives, batch, carry)
        for hook in hooks:
            hook.remove()
        attention, flops = meter.attention, meter.flops
        updating = self._update([*held, *(p.grad for p in self._trained() if p.grad is not None)])
        return UpdateCost(len(batch.keys), flops - backward, backward, attention, updating, sizes, meter)

    def _update(self, held: list[Tensor]) -> int:
        """Bytes that the optimizer and what comes before and after it take for a moment."""
        meter = Meter(held)
        before = meter.live
        with meter:
            rebalance(take_excess(self.model))
            clip_gradients(self.model.parameters(), self.run.trainer.gradient_clip_val)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.model, 1)
        self.optimizer.zero_grad()
        return meter.peak() - before

    def sizes(self) -> Sizes:
        """What the model and its optimizer hold, in bytes."""
        layers = [layer for stack in self.model.stacks.values() if isinstance(stack, Stack) for layer in stack.layers]
        parameters, layer = _bytes(self.model.parameters()), [_bytes(each.parameters()) for each in layers]
        return Sizes(
            parameters + _bytes(self.model.buffers()),
            _bytes(self._trained()),
            _bytes(self._state()),
            max(layer, default=0),
            parameters - sum(layer),
        )

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _marking(self, meter: Meter, parameter: nn.Parameter) -> Any:
        """Have a meter told of a parameter's gradient, once it is whole."""

        def mark(trained: Tensor) -> None:
            assert trained.grad is not None, "the hook is called once there is one"
            meter.mark_gradient(trained.grad)

        return parameter.register_post_accumulate_grad_hook(mark)  # type: ignore[no-untyped-call]

    def _state(self) -> list[Tensor]:
        """What the optimizer keeps, and averages."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        averages = [] if self.average is None else list(self.average.buffers())
        return [value for value in [*kept, *averages] if isinstance(value, Tensor)]


def _encodes(model: Model, batch: Batch) -> bool:
    """Whether an encoder reads something of a batch."""
    read = {encoder.tokenizer.modality for encoder in model.spec.encoders.values()}
    return any(getattr(batch, modality) is not None for modality in read)


def _tensors(batch: Batch) -> list[Tensor]:
    return [value for value in tree_leaves(batch) if isinstance(value, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
