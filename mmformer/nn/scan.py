"""The selective scan: a linear recurrence whose decay, inflow and reading are each token's own.

``h_t = exp(step_t ⊗ decay) ∘ h_{t−1} + b_t ⊗ x_t`` and ``y_t = c_t · h_t``, of N states for each of E channels (Mamba,
Gu and Dao 2023, §3.2). A row is cut into chunks of ``CHUNK`` tokens, and many chunks take each step together: first to
see what is left of its own tokens at the end of each, from which follows what one hands on to the next (over chunks, a
parallel scan: Hillis and Steele 1986), then from what each was handed. Exponents are sums of steps times a negative
decay, never differences of such: nothing overflows.

States take N times the memory of what they are made of. Only those before chunks are kept; the backward pass makes the
others again, a group of chunks at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.nn.precision import exact_dtype

CHUNK = 16
"""Tokens of a chunk: as many steps are taken one after the other, and one state is kept for so many tokens."""

GROUP, GROUP_ON_CPU = 2**22, 2**18
"""How many states take a step together. A CPU holds that few in its caches; elsewhere an operation is a launch, and
should be large. What a step retains of each state is held for a group: ``CHUNK`` times as much."""

RESET = 1e20
"""A step so long that nothing is left of the state before it."""


def selective_scan(
    x: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scan.

    Args:
        x: B L E, what flows in.
        step: B L E, at least 0; ``RESET`` where a token begins anew.
        decay: N E, negative.
        b: B L N, how it flows into the states.
        c: B L N, how the states are read.
        state: B N E, from before the first token; None: nothing.

    Returns:
        B L E, and the state after the last token: B N E. Both are float32, or float64 where x is.
    """
    dtype = exact_dtype(x)
    if state is None:
        state = x.new_zeros(len(x), *decay.shape)
    inputs = [each.to(dtype) for each in (x, step, decay, b, c, state)]
    y, last, _ = _scan(*inputs, min(CHUNK, x.shape[1]))
    return y, last


class _Layout(NamedTuple):
    """How rows are cut: into chunks, which stand in groups. T tokens of a chunk, K chunks of a group, R = B K."""

    batch: int
    length: int
    chunk: int
    group: int

    @classmethod
    def of(cls, x: Tensor, decay: Tensor, chunk: int) -> _Layout:
        batch, length, _ = x.shape
        return cls(batch, length, chunk, max(1, _together(decay) // batch))

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk)

    def cut(self, x: Tensor) -> tuple[Tensor, ...]:
        """B L F -> groups of B K T F; the last chunk is filled up with zeros, which leave a state as it is."""
        missing = self.chunks * self.chunk - x.shape[1]
        whole = F.pad(x, (0, 0, 0, missing)) if missing else x
        return torch.split(whole.reshape(self.batch, self.chunks, self.chunk, -1), self.group, dim=1)

    def empty(self, x: Tensor, features: int) -> Tensor:
        """Room for what ``_put`` fills: B (chunks T) F."""
        return x.new_empty(self.batch, self.chunks * self.chunk, features)

    def room(self, decay: Tensor) -> Tensor:
        """Room for what belongs to every step of a group, which the groups use in turn: T R N E."""
        return decay.new_empty(self.chunk, self.batch * min(self.group, self.chunks), *decay.shape)

    def row(self, filled: Tensor) -> Tensor:
        """B (chunks T) F -> B L F."""
        return filled[:, : self.length].contiguous()


def _together(decay: Tensor) -> int:
    """How many chunks take a step together; so many rows at most are scanned at once."""
    return max(1, (GROUP_ON_CPU if decay.device.type == "cpu" else GROUP) // decay.numel())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """What was made of some rows at a time, of all."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _steps(x: Tensor) -> Tensor:
    """B K T F -> T R F: what the chunks of a group have at each step."""
    return x.permute(2, 0, 1, 3).flatten(1, 2).contiguous()


def _put(into: Tensor, steps: Tensor) -> None:
    """The way back: T R F into B K T F."""
    into.copy_(steps.view(len(steps), *into.shape[:2], -1).permute(1, 2, 0, 3))


def _retained(step: Tensor, decay: Tensor, out: Tensor | None = None) -> Tensor:
    """… E -> … N E: the share of a state that a step leaves. Of the exponentials, PyTorch has a fast one on CPUs."""
    return torch.mul(step[..., None, :], decay / math.log(2), out=out).exp2_()


def _handed(flow: Tensor, retained: Tensor, first: Tensor) -> Tensor:
    """The states before each chunk: B K N E.

    Args:
        flow: B K N E, what is left at a chunk's end of what flowed in during it; overwritten.
        retained: B K N E, the share that a chunk leaves of the state before it; overwritten.
        first: B N E, the state before the first chunk.
    """
    flow[:, 0].addcmul_(retained[:, 0], first)
    distance = 1
    while distance < flow.shape[1]:
        flow[:, distance:] += retained[:, distance:] * flow[:, :-distance]
        retained[:, distance:] = retained[:, distance:] * retained[:, :-distance]
        distance *= 2
    return torch.cat((first[:, None], flow[:, :-1]), dim=1)


@torch.library.custom_op("mmformer::selective_scan", mutates_args=())
def _scan(
    x: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the states before chunks: B chunks N E. One operator, so that compiling keeps it whole."""
    parts = zip(*(torch.split(each, _together(decay)) for each in (x, step, b, c, state)), strict=True)
    y, last, starts = map(_joined, zip(*(_scan_rows(decay, chunk, *rows) for rows in parts), strict=True))
    return y, last, starts


def _scan_rows(
    decay: Tensor, chunk: int, x: Tensor, step: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    layout = _Layout.of(x, decay, chunk)
    y, starts, room = layout.empty(x, x.shape[2]), [], layout.room(decay)
    for group in zip(*(layout.cut(each) for each in (x, step, b, c, y)), strict=True):
        x_, step_, b_, c_ = map(_steps, group[:4])  # T R E or T R N
        retained = _retained(step_, decay, out=room[:, : step_.shape[1]])  # T R N E
        start = _starts(x_, step_, b_, retained, decay, state)  # B K N E
        h, y_ = start.flatten(0, 1).clone(), torch.empty_like(x_)
        for t in range(chunk):
            h.mul_(retained[t]).addcmul_(x_[t, :, None], b_[t, :, :, None])
            torch.bmm(c_[t, :, None], h, out=y_[t, :, None])
        _put(group[4], y_)
        starts.append(start)
        state = h.view_as(start)[:, -1]
    return layout.row(y), state.clone(), torch.cat(starts, dim=1)


def _starts(x: Tensor, step: Tensor, b: Tensor, retained: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """The states before each chunk of a group, of the one before the first: B K N E."""
    if x.shape[1] == len(state):  # one chunk a row
        return state[:, None]
    flow = x[0, :, None] * b[0, :, :, None]  # R N E
    for t in range(1, len(x)):
        flow.mul_(retained[t]).addcmul_(x[t, :, None], b[t, :, :, None])
    shape = (len(state), -1, *decay.shape)
    return _handed(flow.view(shape), _retained(step.sum(0), decay).view(shape), state)


@torch.library.custom_op("mmformer::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    step: Tensor,
    decay: Tensor,
    b: Tensor,
    c: Tensor,
    starts: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, step, decay, b, c and the first state."""
    tensors = (x, step, b, c, grad_y, grad_last, starts)
    parts = zip(*(torch.split(each, _together(decay)) for each in tensors), strict=True)
    made = list(zip(*(_scan_rows_backward(decay, chunk, *rows) for rows in parts), strict=True))
    dx, dstep, db, dc, dstate = map(_joined, made[:-1])
    return dx, dstep, torch.stack(made[-1]).sum(0), db, dc, dstate


def _scan_rows_backward(
    decay: Tensor,
    chunk: int,
    x: Tensor,
    step: Tensor,
    b: Tensor,
    c: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
    starts: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of x, step, b, c, the first state, and, of these rows, the decay."""
    layout = _Layout.of(x, decay, chunk)
    grads = [layout.empty(x, each.shape[2]) for each in (x, step, b, c)]
    grad_state, grad_decay = grad_last, torch.zeros_like(decay)
    rooms = [layout.room(decay) for _ in range(2)]
    parts = [layout.cut(each) for each in (x, step, b, c, grad_y, *grads)]
    groups = list(zip(*parts, torch.split(starts, layout.group, dim=1), strict=True))
    for x_, step_, b_, c_, dy_, *into, start in reversed(groups):
        steps = [_steps(each) for each in (x_, step_, b_, c_, dy_)]
        retained, states = (room[:, : steps[0].shape[1]] for room in rooms)
        _retained(steps[1], decay, out=retained)
        made, grad_state, more = _group_backward(steps, decay, start, grad_state, retained, states)
        grad_decay += more
        for each, steps_ in zip(into, made, strict=True):
            _put(each, steps_)
    return *map(layout.row, grads), grad_state.clone(), grad_decay


def _group_backward(
    steps: list[Tensor], decay: Tensor, start: Tensor, grad_state: Tensor, retained: Tensor, states: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The gradients of x, step, b and c at each step, of the state before the first chunk, and of the decay."""
    x, step, b, c, dy = steps  # T R E or T R N
    dx, dstep, db, dc = (torch.empty_like(each) for each in (x, step, b, c))
    h = start.flatten(0, 1)
    for t in range(len(x)):
        h = torch.mul(retained[t], h, out=states[t]).addcmul_(x[t, :, None], b[t, :, :, None])
        torch.bmm(dy[t, :, None], h.mT, out=dc[t, :, None])  # ten times as fast as h times a column
    g = _ends(dy, step, c, retained, decay, grad_state)  # R N E, of the state after a step
    through, grad_decay = torch.empty_like(g), torch.zeros_like(g)
    for t in reversed(range(len(x))):
        g.addcmul_(dy[t, :, None], c[t, :, :, None])
        torch.bmm(b[t, :, None], g, out=dx[t, :, None])
        torch.bmm(x[t, :, None], g.mT, out=db[t, :, None])
        g.mul_(retained[t])  # now of the state before it
        torch.mul(g, states[t - 1] if t else start.flatten(0, 1), out=through)  # of the exponent
        grad_decay.addcmul_(through, step[t, :, None])
        torch.sum(through.mul_(decay), dim=1, out=dstep[t])
    return [dx, dstep, db, dc], g.view_as(start)[:, 0], grad_decay.sum(0)


def _ends(dy: Tensor, step: Tensor, c: Tensor, retained: Tensor, decay: Tensor, grad_state: Tensor) -> Tensor:
    """The gradients of the states after chunks, of the one after the last: R N E. ``_starts`` backwards."""
    if dy.shape[1] == len(grad_state):
        return grad_state.clone()
    flow = torch.zeros_like(retained[0])
    for t in reversed(range(len(dy))):
        flow.addcmul_(dy[t, :, None], c[t, :, :, None]).mul_(retained[t])
    shape = (len(grad_state), -1, *decay.shape)
    flow, total = (each.view(shape).flip(1) for each in (flow, _retained(step.sum(0), decay)))
    return _handed(flow, total, grad_state).flip(1).flatten(0, 1)


@_scan.register_fake
def _(x: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, ...]:
    chunks = -(-x.shape[1] // chunk)
    return x.new_empty(x.shape), state.new_empty(state.shape), x.new_empty(len(x), chunks, *decay.shape)


@_scan_backward.register_fake
def _(grad_y: Tensor, grad_last: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    x, step, decay, b, c = inputs[:5]
    return tuple(each.new_empty(each.shape) for each in (x, step, decay, b, c, grad_last))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_scan_backward(grad_y.contiguous(), grad_last.contiguous(), *ctx.saved_tensors, ctx.chunk), None


_scan.register_autograd(_backward, setup_context=_remember)
