"""Pipeline parallel: processes that have the layers of a language model one after the other (Huang et al. 2019, GPipe).

Micro-batches go from stage to stage, one forward and one backward pass by turns (1F1B: Narayanan et al. 2021, Efficient
large-scale language model training on GPU clusters using Megatron-LM, §2.2.1), as torch.distributed.pipelining has it.
What goes between stages is the tokens, in float32; where those stand and which are real each stage tells from the ids,
which all of them read.

Parameters keep their names in every stage. Those that a stage does not have are without data (on the meta device), so
that whatever goes through a model by names (groups of an optimizer, averages, checkpoints) is alike in all. What
several stages have (a table of tokens that logits are tied to: the first and the last) has in each the sum of their
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from mmformer.errors import InputError
from mmformer.models.decoder import Decoder
from mmformer.models.model import Model
from mmformer.nn.stack import Stack
from mmformer.parallel.mesh import DIMENSIONS
from mmformer.parallel.sharding import local_part
from mmformer.parallel.stages import holders, spans
from mmformer.types import Batch, Text, Tokens

DIMENSION = "pipeline"
"""Of the mesh."""

Ending = Callable[[int, Tensor], Tensor]
"""What the last stage makes of what left the stack: a micro-batch's number, B L D -> a loss, or what is measured."""


class Pipeline:
    """The stages of a model, seen from one of them."""

    def __init__(self, model: Model, mesh: Any) -> None:
        """Leaves the model what its stage has; each process of a mesh has to ask."""
        self.model = model
        own = mesh[DIMENSION]
        self.group = own.get_group()
        self.stage: int = own.get_local_rank()
        self.stages: int = own.size()
        (decoder,), (stack,) = model.decoders.values(), model.stacks.values()
        assert isinstance(decoder, Decoder)
        assert isinstance(stack, Stack)
        self.decoder, self.stack = decoder, stack
        self.device = torch.device(mesh.device_type)
        self.span = spans(stack.spec.depth, self.stages)[self.stage]
        self.holders = holders(model.spec, model.state_dict(), self.stages)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._shared = {name: self.holders[name] for name in trained if len(self.holders[name]) > 1}
        self._groups = {held: _group_of(mesh, held) for held in sorted(set(self._shared.values()))}
        self._turns: Iterator[tuple[int, Text]] = iter(())  # the micro-batches that are to come, in their order
        self._ending: Ending = lambda number, x: x
        for name, held in self.holders.items():
            if self.stage not in held:
                _empty(model, name)

    @property
    def elsewhere(self) -> set[Tensor]:
        """The parameters and buffers that only other stages have."""
        every = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {every[name] for name, held in self.holders.items() if self.stage not in held and name in every}

    @property
    def is_last(self) -> bool:
        """Whether this stage is the one that makes logits."""
        return self.stage == self.stages - 1

    def train(self, texts: Sequence[Text], ending: Ending) -> None:
        """Add the gradient of micro-batches to the parameters' ``.grad``.

        Args:
            texts: of one shape, as many as there are stages at least.
            ending: gives each one's loss, a scalar in float32; it is called in the last stage.
        """
        stage = self._begin(texts, ending, torch.empty((), device="meta"))
        schedule = Schedule1F1B(stage, len(texts), lambda loss, _: loss, scale_grads=False)
        with _refusals():
            schedule.step(target=torch.arange(len(texts)), return_outputs=False)  # a target is not left out
        self._add_shared_gradients()

    def measure(self, text: Text, ending: Callable[[Tensor], Tensor]) -> Tensor:
        """What the last stage makes of a text, B in float64, in all stages."""
        made = torch.empty(len(text.ids), dtype=torch.float64, device="meta")
        stage = self._begin([text], lambda _, x: ending(x), made)
        with _refusals():
            measured = ScheduleGPipe(stage, 1, scale_grads=False).step()
        return self.told(measured if self.is_last else made, self.stages - 1)

    def run(self, *entered: Tensor) -> Tensor:
        """This stage's layers over the next micro-batch; ``entered``: B L D, what left the stage before, if any."""
        number, written = next(self._turns)
        tokenizer = self.decoder.tokenizer
        text = written.after(tokenizer.start)
        tokens: Tokens = tokenizer.placed(text, *entered) if entered else tokenizer(text)
        x = self.stack(tokens, causal=True, span=self.span).tokens.x
        return self._ending(number, x) if self.is_last else x.float().contiguous()

    def told(self, value: Tensor, stage: int) -> Tensor:
        """One stage's value in all; the others' say its shape, and may be without data."""
        value = torch.empty_like(value, device=self.device) if value.is_meta else value.detach().clone()
        dist.broadcast(value, group=self.group, group_src=stage)
        return value

    def _begin(self, texts: Sequence[Text], ending: Ending, made: Tensor) -> PipelineStage:
        self._turns, self._ending = iter(enumerate(texts)), ending
        ids = texts[0].ids
        between = torch.empty(*ids.shape, self.stack.spec.width, device="meta")  # B L D
        return PipelineStage(
            self.model,
            self.stage,
            self.stages,
            self.device,
            input_args=(between,) if self.stage else (),
            output_args=made if self.is_last else between,
            group=self.group,
        )

    def _add_shared_gradients(self) -> None:
        """The sum, in each stage that has a parameter, of the gradients of all that have it."""
        for name, held in self._shared.items():
            if self.stage not in held:
                continue
            parameter = self.model.get_parameter(name)
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(local_part(parameter.grad), group=self._groups[held])
            parameter.grad.lent = self.stage != held[0]  # type: ignore[attr-defined]  # see ``clipping.py``


@contextmanager
def _refusals() -> Iterator[None]:
    """What a stage refuses inside is raised as it is: PyTorch makes other errors of all that happens in a stage."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise


def cut(model: Model, mesh: Any) -> None:
    """Leave a model, in place, what its stage has; to be done before it is sharded."""
    pipeline = Pipeline(model, mesh)
    model.__class__, pipeline.decoder.__class__ = PipelinedModel, PipelinedDecoder
    model.pipeline = pipeline.decoder.pipeline = pipeline  # type: ignore[assignment]


def _group_of(mesh: Any, stages: tuple[int, ...]) -> dist.ProcessGroup | None:
    """Of some stages, the processes that differ in nothing else, this one among them; None: it is of none of them."""
    order = (DIMENSIONS.index(DIMENSION), *(n for n, name in enumerate(DIMENSIONS) if name != DIMENSION))
    groups = mesh.mesh.permute(order)[list(stages)].flatten(1).T.tolist()  # places stages
    own: dist.ProcessGroup | None
    own, _ = dist.new_subgroups_by_enumeration(groups)  # type: ignore[no-untyped-call]
    return own


def _empty(model: nn.Module, name: str) -> None:
    """Put a tensor without data, of the same shape, in the place of a parameter or a buffer."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    parameter = module._parameters.get(own)
    if parameter is None:
        module._buffers[own] = module.get_buffer(own).to("meta")
    else:
        module._parameters[own] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


class PipelinedModel(Model):
    """What a model becomes, in place."""

    pipeline: Pipeline

    def forward(self, *given: Any, **named: Any) -> Any:
        """Of a batch, as any model's; of what left the stage before, nothing in the first: this stage's layers."""
        whole = any(isinstance(value, Batch) for value in given)
        return super().forward(*given, **named) if whole else self.pipeline.run(*given)


class PipelinedDecoder(Decoder):
    """What its decoder becomes: it measures texts in all stages together."""

    pipeline: Pipeline

    def nats(self, text: Text, memory: Mapping[str, Tokens], stack: Stack) -> Tensor:
        return self.pipeline.measure(text, lambda x: self.nats_of(text, x))
