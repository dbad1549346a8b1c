"""First weights: each module draws its own from a stream that (seed, its name) determines.

A part that is added or removed leaves the others' first weights as they were. A module that holds another library's,
and says ``resets_all_below``, draws all of it from one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mmformer.nn.initialisation import own_stream
from mmformer.nn.stack import Stack


def initialise(model: nn.Module, seed: int) -> None:
    """Draw every parameter and buffer of a model anew, in place."""
    for each in _modules(model):
        each.draw(seed)


def drawn(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """What ``initialise`` gives each parameter and buffer, by name, of a model on the meta device, which stays there.

    One module at a time has its parameters on the CPU.
    """
    for each in _modules(model):
        each.module.to_empty(device="cpu", recurse=each.whole)
        each.draw(seed)
        yield from each.held()
        each.module.to(device="meta")


class _Drawn(NamedTuple):
    """A module that holds parameters or buffers."""

    name: str
    module: nn.Module
    whole: bool  # with what its modules hold
    further: Sequence[Callable[[], None]]  # what draws after its own start

    def held(self) -> list[tuple[str, Tensor]]:
        prefix, recurse = f"{self.name}." * bool(self.name), self.whole
        own = [*self.module.named_parameters(recurse=recurse), *self.module.named_buffers(recurse=recurse)]
        return [(prefix + key, value.detach()) for key, value in own]

    def draw(self, seed: int) -> None:
        reset = getattr(self.module, "reset_parameters", None)
        # A model that was built on the meta device would keep whatever its memory held before.
        kind, held = type(self.module).__name__, self.held()[0][0].removeprefix(f"{self.name}.")
        assert reset is not None, f"{self.name} ({kind}) holds {held}, but has no reset_parameters"
        with own_stream(seed, self.name):
            for draw in (reset, *self.further):
                draw()


def _modules(model: nn.Module) -> Iterator[_Drawn]:
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    further = {module: calls for stack in stacks for module, calls in stack.drawn().items()}
    done: tuple[str, ...] = ()
    for name, module in model.named_modules():
        each = _Drawn(name, module, getattr(module, "resets_all_below", False), further.get(module, ()))
        if not each.held() or name.startswith(done):
            continue
        if each.whole:
            done += (f"{name}.",)
        yield each
