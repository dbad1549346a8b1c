"""What every combination of parts promises: one function a promise, each over one ``Case`` of ``contract.py``.

Tokens are float64, so that what must be equal is equal to 1e-12; where rotary tables or waves, which are float32, are
computed by another route, to 2e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import nn_reference
import numpy as np
import torch
from contract import BATCH, CHOOSY, DEPTH, LENGTH, PLACES, PREFIX, Case, Inputs, make_inputs, make_stack, refused
from torch import Tensor
from torch.testing import assert_close

from mmformer.nn.convolution import DepthwiseSpec
from mmformer.nn.stack import Stack
from mmformer.types import Tokens

EQUAL, TABLES_EQUAL = 1e-12, 2e-7
UNCHANGED, CHANGED = 1e-14, 1e-7


class Check:
    """A promise, and the cases that it is checked over: some levels are taken as others."""

    def __init__(self, function: Callable[[Case], None], instead: dict[str, dict]) -> None:
        self.function, self.instead, self.__name__ = function, instead, function.__name__

    def cases(self, cases: Iterable[Case]) -> list[Case]:
        """The different ones among the cases that the check takes these for."""
        taken = dict.fromkeys(self._taken(case) for case in cases)
        return [case for case in taken if not refused(vars(case))]

    def _taken(self, case: Case) -> Case:
        levels = {name: swap.get(getattr(case, name), getattr(case, name)) for name, swap in self.instead.items()}
        return case.with_(**levels)

    def __str__(self) -> str:
        return self.__name__

    def __call__(self, case: Case) -> None:
        self.function(case)


CHECKS: list[Check] = []


def check(**instead: dict) -> Callable[[Callable[[Case], None]], Check]:
    """Enter a promise into ``CHECKS``; ``padded={False: True}`` takes every case for its padded one."""

    def enter(function: Callable[[Case], None]) -> Check:
        CHECKS.append(Check(function, instead))
        return CHECKS[-1]

    return enter


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


@check()
def shapes(case: Case) -> None:
    """The shape and dtype of x come out, the description of the tokens passes through, nothing else is returned."""
    for dtype in (torch.float32, torch.float64):
        inputs = make_inputs(case, dtype)
        output = inputs.run(make_stack(case.spec, dtype), intermediates=range(DEPTH))
        x, tokens = output.tokens.x, inputs.tokens
        assert (x.shape, x.dtype) == (tokens.x.shape, dtype)
        assert bool(x.isfinite().all())
        assert output.tokens[1:] == tokens[1:]
        assert output.state is None
        assert output.aux == {}
        assert {index: y.shape for index, y in output.intermediates.items()} == dict.fromkeys(range(DEPTH), x.shape)
        if case.placement == "post":  # no final norm: the last intermediate is the output
            assert torch.equal(output.intermediates[DEPTH - 1], x)


@check()
def reference(case: Case) -> None:
    """The output is what ``nn_reference`` says in loops."""
    stack, inputs = make_stack(case.spec), make_inputs(case)
    expected = torch.from_numpy(nn_reference.stack_output(stack, inputs))
    close(inputs(stack), expected, TABLES_EQUAL if case.float32_tables else EQUAL, "against loops")


@check()
def sight(case: Case) -> None:
    """A token reaches exactly those that see it, or see one that does: causality, prefix, padding, packing at once."""
    stack, inputs = make_stack(case.spec), make_inputs(case)
    copies = LENGTH + 1  # copy j has token j changed; the last copy none
    x = inputs.tokens.x.repeat(copies, 1, 1)
    noise = torch.randn(BATCH, x.shape[2], dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    for j in range(LENGTH):
        x[j * BATCH : (j + 1) * BATCH, j] += noise
    output = _repeated(inputs, copies, x)(stack).unflatten(0, (copies, BATCH))
    change = (output[:-1] - output[-1]).abs().amax(-1).permute(1, 2, 0).detach().numpy()  # B, of i, by j
    step = nn_reference.visibility(inputs, case.spec.layer.mixer) | np.eye(LENGTH, dtype=bool)
    reaches = np.linalg.matrix_power(step.astype(int), DEPTH) > 0
    choosy = isinstance(case.spec.layer.mixer, CHOOSY)
    _same_sight(change, reaches, choosy, "a change of token {j} in sample {b} and the output of token {i}")


@check(cross={"none": "other_width"}, placement={"parallel": "pre"})
def sight_of_memory(case: Case) -> None:
    """A token of memory reaches exactly those that see it, or see one that does."""
    stack, inputs = make_stack(case.spec), make_inputs(case)
    assert inputs.memory is not None
    places = inputs.memory.x.shape[1]
    memory = inputs.memory.x.repeat(places + 1, 1, 1)
    noise = torch.randn(BATCH, memory.shape[2], dtype=memory.dtype, generator=torch.Generator().manual_seed(3))
    for j in range(places):
        memory[j * BATCH : (j + 1) * BATCH, j] += noise
    repeated = _repeated(inputs, places + 1, inputs.tokens.x.repeat(places + 1, 1, 1), memory)
    output = repeated(stack).unflatten(0, (places + 1, BATCH))
    change = (output[:-1] - output[-1]).abs().amax(-1).permute(1, 2, 0).detach().numpy()
    step = (nn_reference.visibility(inputs, case.spec.layer.mixer) | np.eye(LENGTH, dtype=bool)).astype(int)
    direct = nn_reference.memory_visibility(inputs).astype(int)
    reaches = sum(np.linalg.matrix_power(step, k) @ direct for k in range(DEPTH)) > 0
    choosy = isinstance(case.spec.layer.mixer, CHOOSY)
    _same_sight(change, reaches, choosy, "a change of memory {j} in sample {b} and the output of token {i}")


@check(order={"prefix": "causal", "full": "causal"}, padded={True: False}, packed={True: False})
def causality(case: Case) -> None:
    """Whatever the future holds, what stands before it is the same; without ``causal`` it is not."""
    stack, inputs, cut = make_stack(case.spec), make_inputs(case), 5
    other = make_inputs(case, seed=7).tokens.x
    x = torch.cat((inputs.tokens.x[:, :cut], 100 * other[:, cut:]), dim=1)
    pos = inputs.tokens.pos.clone()
    pos[:, cut:, 0] += 1
    for causal in (True, False) if "bidirectional" in stack.abilities else (True,):
        inputs = inputs._replace(causal=causal)
        changed, unchanged = inputs._replace(tokens=Tokens(x, pos))(stack)[:, :cut], inputs(stack)[:, :cut]
        difference = (changed - unchanged).abs().amax(-1)
        mixer = case.spec.layer.mixer  # of some, some tokens see none of the later ones
        local = isinstance(mixer, (*CHOOSY, DepthwiseSpec)) or getattr(mixer, "pattern", None) is not None
        seen = (difference > CHANGED).any() if local else (difference > CHANGED).all()
        assert bool((difference <= UNCHANGED).all() if causal else seen), (
            f"with causal={causal}, changing the tokens from {cut} on changes the earlier by up to {difference.amax()}"
        )


@check(padded={False: True})
def garbage_in_padding(case: Case) -> None:
    """What invalid tokens hold, however large, and wherever they stand, changes nothing in valid ones."""
    for dtype, size, tolerance in ((torch.float64, 1e30, EQUAL), (torch.float32, 1e15, 1e-6)):
        stack, inputs = make_stack(case.spec, dtype), make_inputs(case, dtype)
        valid, noise = inputs.tokens.valid, make_inputs(case, dtype, seed=7)
        assert valid is not None
        x = torch.where(valid[..., None], inputs.tokens.x, size * noise.tokens.x)
        pos = torch.where(valid[..., None], inputs.tokens.pos, PLACES[1])
        changed = inputs._replace(tokens=inputs.tokens._replace(x=x, pos=pos))
        if inputs.memory is not None and noise.memory is not None and inputs.memory.valid is not None:
            seen = inputs.memory.valid[..., None]
            memory = torch.where(seen, inputs.memory.x, size * noise.memory.x)
            changed = changed._replace(memory=inputs.memory._replace(x=memory))
        close(changed(stack)[valid], inputs(stack)[valid], tolerance, f"garbage of size {size:.0e}, {dtype}")


@check(padded={False: True}, packed={True: False})
def padding(case: Case) -> None:
    """Without its invalid tokens, a sample gives what it gave with them."""
    _parts_alone(case)


@check(packed={False: True})
def packing(case: Case) -> None:
    """A document alone gives what it gave packed with others."""
    _parts_alone(case)


@check()
def gradients(case: Case) -> None:
    """A gradient reaches every parameter, finite and not zero; a learned table's rows, where a token stands."""
    stack, inputs = make_stack(case.spec), make_inputs(case)
    output = inputs(stack)
    weight = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(4))
    real = torch.ones(BATCH, LENGTH) if inputs.tokens.valid is None else inputs.tokens.valid
    loss = (output * weight * real[..., None]).sum()
    names, parameters = zip(*stack.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        assert gradient is not None, f"{name} took no part"
        assert bool(gradient.isfinite().all()), f"{name}'s gradient is not finite"
        assert float(gradient.abs().amax()) > CHANGED, f"{name}'s gradient is zero"


@check(order={"full": "causal"})
def cached(case: Case) -> None:
    """Call by call with a state equals one pass, whatever the calls' sizes."""
    stack, inputs = make_stack(case.spec), make_inputs(case)
    expected = inputs(stack)
    whole = int(PREFIX.max()) if case.order == "prefix" else 1  # a prefix enters in one call
    one_at_a_time = (whole, *(1,) * (LENGTH - whole))
    mixed = (whole, 1, LENGTH - whole - 3, 2)
    for chunks in (one_at_a_time, mixed, (LENGTH,)):
        close(decode(stack, inputs, chunks), expected, EQUAL, f"in calls of {chunks} tokens")


@check(order={"prefix": "causal"}, padded={True: False}, packed={True: False})
def one_token(case: Case) -> None:
    """A batch of one row of one token gives what the loops say."""
    stack, inputs = make_stack(case.spec), make_inputs(case)
    first = Tokens(*(None if t is None else t[1:2, 1:2] for t in inputs.tokens))
    memory = None if inputs.memory is None else Tokens(*(None if t is None else t[1:2] for t in inputs.memory))
    alone = inputs._replace(tokens=first, memory=memory)
    expected = torch.from_numpy(nn_reference.stack_output(stack, alone))
    close(alone(stack), expected, TABLES_EQUAL if case.float32_tables else EQUAL, "one token against loops")


@check(padded={True: False}, packed={True: False}, order={"prefix": "causal"})
def deterministic(case: Case) -> None:
    """Under one seed, weights are drawn, and tokens trained on, to the same bits."""

    def trained() -> tuple[Tensor, ...]:
        torch.manual_seed(11)
        stack = case.spec.build().train()
        output = make_inputs(case, torch.float32)(stack)
        return output, *torch.autograd.grad(output.square().sum(), [*stack.parameters()], allow_unused=True)

    for one, other in zip(trained(), trained(), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def decode(stack: Stack, inputs: Inputs, chunks: tuple[int, ...]) -> Tensor:
    state, outputs, at = stack.empty_state(), [], 0
    for chunk in chunks:
        piece = Tokens(*(None if t is None else t[:, at : at + chunk] for t in inputs.tokens))
        output = inputs._replace(tokens=piece).run(stack, state=state)
        assert output.state is not None
        state, at = output.state, at + chunk
        outputs.append(output.tokens.x)
    return torch.cat(outputs, dim=1)


def _repeated(inputs: Inputs, copies: int, x: Tensor, memory: Tensor | None = None) -> Inputs:
    """The same samples several times over, with other contents."""

    def again(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.repeat(copies, *(1,) * (t.dim() - 1))

    tokens = Tokens(x, *(again(t) for t in inputs.tokens[1:]))
    if inputs.memory is None:
        return inputs._replace(tokens=tokens, prefix=again(inputs.prefix))
    content = again(inputs.memory.x) if memory is None else memory
    read = Tokens(content, *(again(t) for t in inputs.memory[1:]))
    return inputs._replace(tokens=tokens, prefix=again(inputs.prefix), memory=read)


def _same_sight(change: np.ndarray, reaches: np.ndarray, choosy: bool, what: str) -> None:
    for b, i, j in np.ndindex(reaches.shape):
        about = what.format(b=b, i=i, j=j)
        if reaches[b, i, j]:
            seen = choosy or change[b, i, j] > CHANGED
            assert seen, f"{about}: it must be seen, but changed by {change[b, i, j]:.1e}"
        else:
            assert change[b, i, j] <= UNCHANGED, f"{about}: it must not be seen, but changed by {change[b, i, j]:.1e}"


def _parts_alone(case: Case) -> None:
    """Every sample's every segment, its valid tokens only, run by itself."""
    stack, inputs = make_stack(case.spec), make_inputs(case)
    together, tokens = inputs(stack), inputs.tokens
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool) if tokens.valid is None else tokens.valid
    segment = torch.zeros(BATCH, LENGTH, dtype=torch.int64) if tokens.segment is None else tokens.segment
    for b in range(BATCH):
        for document in segment[b].unique().tolist():
            keep = valid[b] & (segment[b] == document)
            if not keep.any():
                continue
            alone = Tokens(tokens.x[b : b + 1, keep], tokens.pos[b : b + 1, keep])
            prefix = None if inputs.prefix is None else keep[: int(inputs.prefix[b])].sum()[None]
            memory = _memory_alone(inputs.memory, b, document if case.packed else None)
            output = Inputs(alone, inputs.causal, prefix, memory)(stack)[0]
            close(output, together[b, keep], EQUAL, f"sample {b}, segment {document}")


def _memory_alone(memory: Tokens | None, b: int, document: int | None) -> Tokens | None:
    if memory is None:
        return None
    x, pos, valid, segment = (None if t is None else t[b : b + 1] for t in memory)
    keep = torch.ones(1, memory.x.shape[1], dtype=torch.bool) if valid is None else valid
    if segment is not None and document is not None:
        keep = keep & (segment == document)
    return Tokens(x, pos, keep)
