"""Reversible layers: what entered a layer is computed from what left it, so that nothing in between has to be kept.

Tokens run in two streams. The mixer reads the second and adds to the first, the feed-forward reads the first and adds
to the second: y1 = x1 + mixer(x2), y2 = x2 + feedforward(y1). In the backward pass x2 = y2 - feedforward(y1), and
x1 = y1 - mixer(x2): a gradient takes the memory of one branch, whatever the depth, and the time of one pass more.
RevNet, Gomez et al. 2017, §3; Reformer, Kitaev et al. 2020, §3. Both streams begin as the tokens that come in, and
their mean comes out. What is computed back differs from what was by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from mmformer.nn.layer import Layer, LayerSpec, LayerState
from mmformer.nn.mixer import State, View
from mmformer.nn.run import Ran, Step, add_aux
from mmformer.types import Aux

INVERTIBLE = (
    "each layer is a mixer and a feedforward whose sums can be undone (no cross, not parallel, skip_scale 1, placement "
    "'pre' or 'sandwich'), without step_signal, and no token halts"
)
"""What a reversible stack has to be."""


def is_invertible(layer: LayerSpec) -> bool:
    """Whether a layer is two branches whose sums can be undone."""
    sums = layer.placement in ("pre", "sandwich") and layer.skip_scale == 1
    both = layer.mixer is not None and layer.feedforward is not None
    return sums and both and layer.cross is None and not layer.parallel


def run_reversibly(
    x: Tensor, steps: Sequence[Step], view: View, past: tuple[LayerState, ...] | None, intermediates: Collection[int]
) -> Ran:
    """Apply layers in turn, over two streams; arguments as of ``run_layers``.

    Where a gradient is wanted, what a layer takes and makes is kept only at intermediates that are asked for.
    """
    if view.bias is not None:  # which the lowered mask is made of: one of the two has the gradient
        view = view._replace(lowered=None)
    if past is not None or not torch.is_grad_enabled():
        return _run_plainly(x, steps, view, past, intermediates)
    one, two, aux, kept = x, x, Aux(), dict[int, Tensor]()
    begin = 0
    for end in range(1, len(steps) + 1):
        place = steps[end - 1].place
        if place in intermediates or end == len(steps):
            one, two, more = _Run(steps[begin:end], view).apply(one, two)
            add_aux(aux, more)
            begin = end
        if place in intermediates:
            kept[place] = (one + two) / 2
    return Ran((one + two) / 2, (), aux, kept)


def _run_plainly(
    x: Tensor, steps: Sequence[Step], view: View, past: tuple[LayerState, ...] | None, intermediates: Collection[int]
) -> Ran:
    one, two, aux, kept, states = x, x, Aux(), dict[int, Tensor](), list[LayerState]()
    for number, step in enumerate(steps):
        state = None if past is None else past[number].mixer
        added, state, more = _mix(step, two, view, state, past is not None)
        one = one + added
        add_aux(aux, more)
        added, more = _fed(step, view, one)
        two = two + added
        add_aux(aux, more)
        if past is not None:
            states.append(LayerState(state))
        if step.place in intermediates:
            kept[step.place] = (one + two) / 2
    return Ran((one + two) / 2, tuple(states), aux, kept)


def _mix(step: Step, x: Tensor, view: View, past: State | None, keep: bool) -> tuple[Tensor, State | None, Aux]:
    residual, mixer = step.layer.mixer_residual, step.layer.mixer
    assert residual is not None and mixer is not None, "its spec was refused without"
    y, state, aux = mixer(residual.enter(x), view, past, keep)
    return residual.leave(torch.zeros_like(x), y, step.drop_path), state, aux


def _mixed(step: Step, view: View, x: Tensor) -> tuple[Tensor, Aux]:
    """What a layer's mixer adds."""
    added, _, aux = _mix(step, x, view, None, False)
    return added, aux


def _fed(step: Step, view: View, x: Tensor) -> tuple[Tensor, Aux]:
    """What a layer's feed-forward adds."""
    residual, feedforward = step.layer.feedforward_residual, step.layer.feedforward
    assert residual is not None and feedforward is not None, "its spec was refused without"
    valid = None if view.mask.valid is None else view.mask.valid[:, -x.shape[1] :]  # of x's own tokens
    y, aux = feedforward(residual.enter(x), valid)
    return residual.leave(torch.zeros_like(x), y, step.drop_path), aux


class _Branch(NamedTuple):
    """A half of a layer."""

    compute: Callable[[Tensor], tuple[Tensor, Aux]]  # what is read -> what is added, and what is asked for
    inputs: list[Tensor]  # besides what it reads, what its gradient goes to


class _Run:
    """Layers in turn: what one autograd node is made of. Branches take turns: an even one adds to the first stream."""

    def __init__(self, steps: Sequence[Step], view: View) -> None:
        outside = [*_differentiable(view)]
        self.branches: list[_Branch] = []
        for step in steps:
            mixing, feeding = _parameters(step.layer)
            self.branches.append(_Branch(partial(_mixed, step, view), [*mixing, *outside]))
            self.branches.append(_Branch(partial(_fed, step, view), feeding))
        self.inputs = list({id(x): x for branch in self.branches for x in branch.inputs}.values())
        self.drawn: list[_Random] = []  # before each branch
        self.aux: list[Aux] = []  # of each branch
        self.precision: dict[str, Any] = {}

    def apply(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Aux]:
        one, two, *totals = _Node.apply(self, one, two, *self.inputs)  # type: ignore[no-untyped-call]
        made, total = Aux(), iter(totals)
        for aux in self.aux:
            add_aux(made, {name: term._replace(total=next(total)) for name, term in aux.items()})
        return one, two, made

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        x, device = [*streams], streams[0].device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self.precision = {"device_type": device, "dtype": dtype, "enabled": enabled}
        for number, branch in enumerate(self.branches):
            to = number % 2
            self.drawn.append(_Random.now(x[to]))
            added, aux = branch.compute(x[1 - to])
            x[to] = x[to] + added
            self.aux.append(aux)
        return *x, *(term.total for aux in self.aux for term in aux.values())

    def backward(self, streams: Sequence[Tensor], upstream: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """From what left the layers, and its gradient: the gradient of what entered them, and of the inputs."""
        x, dx, dtotals = [*streams], [*upstream[:2]], [*upstream[2:]]
        sums: dict[int, Tensor] = {}
        for number in reversed(range(len(self.branches))):
            branch, to, asked = self.branches[number], number % 2, len(self.aux[number])
            read = x[1 - to].detach().requires_grad_()
            with torch.enable_grad(), self.drawn[number].again(), torch.autocast(**self.precision):
                added, aux = branch.compute(read)
            made = [added, *(term.total for term in aux.values())]
            down = [dx[to], *dtotals[len(dtotals) - asked :]]
            del dtotals[len(dtotals) - asked :]
            reached = [(y, dy) for y, dy in zip(made, down, strict=True) if dy is not None and y.requires_grad]
            inputs = [read, *branch.inputs]
            ys, dys = zip(*reached, strict=True)
            first, *others = torch.autograd.grad(ys, inputs, dys, allow_unused=True)
            x[to] = x[to] - added.detach()
            dx[1 - to] = _sum(dx[1 - to], first)
            for input_, gradient in zip(branch.inputs, others, strict=True):
                if gradient is not None:
                    sums[id(input_)] = _sum(sums.get(id(input_)), gradient)
        return *dx, *(sums.get(id(input_)) for input_ in self.inputs)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, one: Tensor, two: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = run.forward(one, two)
        ctx.run = run
        ctx.save_for_backward(*made[:2])
        ctx.set_materialize_grads(False)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.run.backward(ctx.saved_tensors, upstream)


class _Random(NamedTuple):
    """What was to be drawn from, on the host and on the device that computes."""

    host: Tensor
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def now(cls, x: Tensor) -> _Random:
        return cls(torch.get_rng_state(), *get_device_states(x))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, what is drawn is what was drawn then."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.host)
            set_device_states(self.devices, self.states)
            yield


def _parameters(layer: Layer) -> tuple[list[Tensor], list[Tensor]]:
    """What trains in the two branches of a layer."""
    parts = (layer.mixer, layer.mixer_residual), (layer.feedforward, layer.feedforward_residual)
    first, second = (_trained(*(part for part in pair if part is not None)) for pair in parts)
    return first, second


def _trained(*parts: nn.Module) -> list[Tensor]:
    return [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]


def _differentiable(value: object) -> Iterator[Tensor]:
    """The tensors in a view that have a gradient: a learned bias, or learned rotations."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _differentiable(each)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor:
    if one is None or other is None:
        assert one is not None or other is not None, "something led here"
        return other if one is None else one  # type: ignore[return-value]
    return one + other
