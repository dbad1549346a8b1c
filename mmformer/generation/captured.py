"""Steps of a decoder that a CUDA device has recorded: what an id takes is asked for at once, not kernel by kernel.

Of few rows, each kernel takes less time than it takes to ask for it. A recording (a CUDA graph) reads and writes the
same memory each time, so there are places for ids that are not there yet, which nobody sees, and rows that have ended
stay and are written on, unseen.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.generation.progress import Progress
from mmformer.nn.cache import KeyValue
from mmformer.nn.layer import Layer, LayerState
from mmformer.nn.stack import Stack
from mmformer.nn.unaltered import is_unaltered
from mmformer.types import Tokens

PLACES = 256
"""Ids that there are places for at most. Attention reads them all; when they are taken, a step is recorded anew."""
ALIGNED = 64
"""Places are a multiple of it, as kernels of masked attention want them."""

Step = Callable[[Tensor, Progress, Mapping[str, Tokens]], tuple[Tensor, Progress]]
"""From ids, B, and what is held to the logits of the next ones, B V, and what is held then."""


_ONE = threading.Lock()
"""A process records one thing at a time."""

_REFUSED: set[torch.device] = set()
"""Devices that could not record a step: they are not asked again."""


def recorded(run: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """Have the device record what a function asks of it, which was run before, so that its kernels are loaded; what
    comes back has it done again.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # Not torch.cuda.graph: it would wait for the device and give back the memory that training holds; and its stream is
    # the first device's. Other threads may ask for memory meanwhile, as one does that brings batches to the device.
    with _ONE, torch.cuda.stream(_stream(device)):
        try:
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        except RuntimeError:
            _leave(device, pool)
            raise
    return graph.replay


def _leave(device: torch.device, pool: tuple[int, int]) -> None:
    """What the end of a recording does, and leaves undone where it fails: later numbers would be refused as if there
    was still a recording, and memory never be given back.
    """
    own = torch.cuda.default_generators[device.index]
    own.graphsafe_set_state(own.clone_state())  # which is of no recording
    with suppress(RuntimeError):  # it was not begun, or was ended
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def can_record(device: torch.device) -> bool:
    """Whether a device records; not under autocast, whose weights are gone when it ends."""
    return device.type == "cuda" and not torch.is_autocast_enabled("cuda")


def can_capture(decoder: nn.Module, stack: Stack, progress: Progress) -> bool:
    """Whether a decoder's steps can be the same kernels over the same memory each time, on a device that records them:
    those of softmax attention without a pattern, and of feed-forwards that treat each token by itself.
    """
    state, spec = progress.stack, stack.spec
    device = progress.lengths.device
    if not can_record(device) or torch.is_grad_enabled() or torch.compiler.is_compiling() or device in _REFUSED:
        return False
    if type(stack) is not Stack or state.pos is None or state.segment is not None or state.media is not None:
        return False
    by_mask = all(mixer.takes_lowered_mask for mixer in (*spec.mixers, *spec.crosses))
    by_token = all(isinstance(layer, Layer) and layer.is_by_token for layer in stack.layers)
    plain = all(is_unaltered(part) for owner in (decoder, stack) for part in owner.modules())
    return by_mask and by_token and spec.halting is None and plain


class Captured:
    """Progress whose steps are recorded at the first of them. What it was made of stays as it is; it changes itself.

    Args:
        step: asks nothing of the host, and takes the same way whatever the values.
        ids: B, as many as steps will have at most.
        progress: what is held so far.
        memory: what the decoder reads of its inputs.
        most: ids that may still be written, at least 1.
    """

    def __init__(
        self, step: Step, ids: Tensor, progress: Progress, memory: Mapping[str, Tokens], most: int = PLACES
    ) -> None:
        assert progress.stack.pos is not None
        there = progress.stack.pos.shape[1]
        self._places = -(-(there + min(PLACES, most)) // ALIGNED) * ALIGNED
        self._free = self._places - there
        self._step, self._ids = step, ids.clone()
        self._at = torch.full((1,), there, device=ids.device)
        self._progress = _fixed(progress, self._places, self._at)
        self._memory = {name: _own(tokens) for name, tokens in memory.items()}
        self._rows, self._inputs = len(ids), next((len(tokens.x) for tokens in memory.values()), 0)
        self._again: Callable[[], object] | None = None

    @property
    def may_go_on(self) -> bool:
        """Whether there is a place for another id, and steps are asked for as the recorded one was."""
        held = self._progress.lengths
        same_mode = held.is_inference() == torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        return self._free > 0 and same_mode and held.device not in _REFUSED and can_record(held.device)

    def step(self, ids: Tensor) -> Tensor:
        """The logits of the ids after these, of as many rows as there still are: B V."""
        assert self.may_go_on and len(ids) == self._rows
        self._ids[: len(ids)] = ids
        self._free -= 1
        if self._again is not None:
            self._again()
            return self._logits[: len(ids)].clone()
        self._run()
        made = self._logits[: len(ids)].clone()
        self._record()
        return made

    def take(self, rows: Tensor, inputs: Tensor | None = None) -> Held:
        """As of Progress; they are moved within its memory. Where few are left, what is recorded is for too many."""
        if 2 * len(rows) < len(self._ids) or not self.may_go_on:
            return self.released().take(rows, inputs)
        self._rows = len(rows)
        held = self._progress.stack
        there = self._places - self._free
        kept = [x[:, :, :there] for state in held.layers for x in (state.mixer or ())[:2]]
        lengths = self._progress.lengths
        _move((*kept, held.pos, held.valid, held.prefix, lengths), rows)
        lengths[len(rows) :] = lengths[0]  # or those that have ended would leave the positions' tables
        if inputs is not None:
            self._inputs = len(inputs)
            read = [x for state in held.layers for x in (state.cross or ())[:2]]
            _move((*read, *(part for tokens in self._memory.values() for part in tokens)), inputs)
        return self

    def released(self) -> Progress:
        """What is held, of the rows that there still are, to go on from without places."""
        held = self._progress.stack
        assert held.pos is not None and held.valid is not None
        there, rows, inputs = self._places - self._free, slice(self._rows), slice(self._inputs)

        def layer(state: LayerState) -> LayerState:
            mixer = None if state.mixer is None else KeyValue(*(x[rows, :, :there] for x in state.mixer[:2]))
            return LayerState(mixer, None if state.cross is None else KeyValue(*(x[inputs] for x in state.cross[:2])))

        layers, prefix = tuple(map(layer, held.layers)), None if held.prefix is None else held.prefix[rows]
        stack = held._replace(
            layers=layers, pos=held.pos[rows, :there], valid=held.valid[rows, :there], prefix=prefix, at=None
        )
        return Progress(stack, self._progress.lengths[rows])

    def _run(self) -> None:
        self._logits, after = self._step(self._ids, self._progress, self._memory)
        self._progress.lengths.copy_(after.lengths)
        self._at.add_(1)

    def _record(self) -> None:
        device = self._at.device
        try:
            self._again = recorded(self._run, device)
        except RuntimeError as error:
            _REFUSED.add(device)
            told = f"On {device} ids are written kernel by kernel, for a step could not be recorded: {error}"
            warnings.warn(told, stacklevel=2)


def _move(tensors: Iterable[Tensor | None], rows: Tensor) -> None:
    """Some rows of each to where the first are; the rest stay, and mean nothing."""
    for tensor in tensors:
        if tensor is not None:
            tensor[: len(rows)] = tensor.index_select(0, rows)


def _fixed(progress: Progress, places: int, at: Tensor) -> Progress:
    """The same, with so many places, in memory of its own."""
    held = progress.stack
    assert held.pos is not None
    free = places - held.pos.shape[1]

    def layer(state: LayerState) -> LayerState:
        mixer = None if state.mixer is None else KeyValue(*state.mixer[:2]).fixed(places, at)
        cross = None if state.cross is None else KeyValue(*(x.clone() for x in state.cross[:2]))
        return LayerState(mixer, cross)

    valid = torch.ones_like(held.pos[:, :, 0], dtype=torch.bool) if held.valid is None else held.valid
    stack = held._replace(
        layers=tuple(map(layer, held.layers)),
        pos=F.pad(held.pos, (0, 0, 0, free)),
        valid=F.pad(valid, (0, free)),
        prefix=_cloned(held.prefix),
        at=at,
    )
    return Progress(stack, progress.lengths.clone())


def _own(tokens: Tokens) -> Tokens:
    return Tokens(tokens.x.clone(), tokens.pos.clone(), _cloned(tokens.valid), _cloned(tokens.segment))


def _cloned(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


Held = Progress | Captured
"""What is carried from one id to the next, however it is."""
