"""What a computation costs, counted while it runs, or as if it ran: on tensors without data.

Weights, pictures and whatever is made of them have shapes alone; ids, lengths and coordinates, of which shapes are
made, are real. So a pass over a batch of any size takes no memory, and goes through the code of a real one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from math import prod
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import mmformer.nn.grouped  # noqa: F401  # its operations are known when it was imported
from mmformer.errors import InputError

M = TypeVar("M", bound=nn.Module)

aten, own = torch.ops.aten, torch.ops.mmformer


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products: of queries with keys, and of weights with values; all of them, whatever a mask hides."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(
    _: Any, query: Sequence[int], key: Sequence[int], value: Sequence[int], *__: Any, **___: Any
) -> int:
    """Five products: those of the forward pass have two gradients each, and the weights are computed again."""
    return 2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def _grouped(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[1]


def _grouped_backward(_: Any, x: Sequence[int], weight: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * _grouped(x, weight)


def _packed(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[0]


ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
PACKED = {
    getattr(library, name): _packed
    for library, name in ((torch.ops.mkldnn, "_linear_pointwise"), (torch.ops.mkl, "_mkl_linear"))
    if hasattr(library, name)  # not every build has both
}
FORMULAS = ATTENTION | PACKED | {own.grouped_linear: _grouped, own.grouped_linear_backward: _grouped_backward}
"""FLOPs of operations that PyTorch's counter does not know, from the shapes of what they are given."""

_FORMULAS = FlopCounterMode(display=False, custom_mapping=FORMULAS).flop_registry
"""Those with PyTorch's own, of tensors."""


class Weightless:
    """Makes modules and tensors without data, that compute together."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def module(self, build: Callable[[], M]) -> M:
        """A module whose parameters and buffers have shapes alone."""
        with torch.device("meta"):
            made = build()
        with self._mode:
            return made.to_empty(device="cpu")

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor that has a shape alone."""
        with self._mode:
            return torch.empty(*shape, dtype=dtype)


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, counts FLOPs, and the bytes of storages that are alive.

    FLOPs are what PyTorch's FlopCounterMode counts, which cannot be used where a backward pass runs another one (of
    reversible stacks): those of matrix products, convolutions and attention, a multiplication and an addition as two.
    What elements go through one by one is left out. Memory that operations take and give back inside is not seen, nor
    that of packed weights, which a library keeps.

    Args:
        before: tensors that are there already (parameters, what an optimizer keeps): they count as alive.

    Attributes:
        live: bytes that are alive.
        history: (gradients, all the rest) in bytes, each time that something was made.
        flops: the count so far.
        attention: those of products between tokens, of softmax attention, among them.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.gradients = 0, 0
        self.history: list[tuple[int, int]] = []
        self.flops, self.attention = 0, 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._marked: set[int] = set()
        for value in before:
            self._see(value)

    def peak(self, share: float = 1.0) -> int:
        """Bytes at most that were alive at once, were gradients a share of what they are."""
        return max((int(rest + share * gradients) for gradients, rest in self.history), default=self.live)

    def mark_gradient(self, gradient: Tensor) -> None:
        """Count a storage as a parameter's gradient, for as long as it lives."""
        key, size = gradient.untyped_storage()._cdata, gradient.untyped_storage().nbytes()
        if key in self._alive and key not in self._marked:
            self._marked.add(key)
            self.gradients += size
            self._note()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if isinstance(error, DataDependentOutputException):
            raise InputError(
                f"what this model does depends on the values that it computes ({error.func}), which a plan does not "
                f"have: measure it by mmformer profile, on a few updates."
            ) from error

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten.index.Tensor and isinstance(args[0], FakeTensor):
            args = (args[0], _places(args[1]), *args[2:])
        kwargs = kwargs or {}
        operation = func.overloadpacket
        if torch.is_inference_mode_enabled() and operation not in _FORMULAS and func.namespace == "aten":
            with self:  # linear and matmul come here whole then, not as the products that are counted
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        if operation in _FORMULAS:
            flops = int(_FORMULAS[operation](*args, **kwargs, out_val=made))
            self.flops += flops
            self.attention += flops if operation in ATTENTION else 0
        # A backward pass adds a second gradient to the first in place, but for tensors without data: the first of
        # them is gone before anything else is made.
        in_place = func is aten.add.Tensor and torch._C._current_graph_task_id() >= 0
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and not value.is_mkldnn:
                self._see(value, not in_place)
        return made

    def _see(self, value: Tensor, note: bool = True) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: object) -> None:
            self.live -= size
            del self._alive[key]
            if key in self._marked:
                self._marked.remove(key)
                self.gradients -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.live += size
        if note:
            self._note()

    def _note(self) -> None:
        self.history.append((self.gradients, self.live - self.gradients))


def _places(indexes: list[Tensor | None]) -> list[Tensor | None]:
    """Masks whose values are known as the places that they let through: how many those are is then known, too."""
    found: list[Tensor | None] = []
    for index in indexes:
        known = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero(as_tuple=True) if known and index is not None else [index]
    return found
