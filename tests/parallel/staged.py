"""Language models that are trained in stages, or by one process: what both are compared by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmformer import collectives
from mmformer.models.decoder import Decoder, DecoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import RelativeBucketPositionSpec
from mmformer.nn.feedforward import GELUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.norm import RMSNormSpec
from mmformer.nn.position import LearnedPositionSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.parallel.checkpointing import ActivationCheckpointingSpec, checkpoint_layers
from mmformer.parallel.clipping import clip_gradients
from mmformer.parallel.sharding import spread, whole_state
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.tokenizers.vocabulary import SpecialIds
from mmformer.training.accumulate import accumulate
from mmformer.training.average import EMASpec
from mmformer.training.layouts import by_name, held
from mmformer.training.norms import ActivationNorms, gradient_norms
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.optimizers.muon import MuonSpec
from mmformer.training.optimizers.optimizer import OptimizerSpec
from mmformer.types import Batch, Text

PARTS = 4
WORDS = TextTokensSpec(None, 16, rows=48, ids=SpecialIds(bos=0, eos=(1,)))
LENGTHS = torch.tensor([4, 1, 13, 2, 1, 3, 2, 5])
HEADS = AttentionSpec(2)
TABLE = "decoders.words.tokenizer.weight"

# As GPT-2, Llama and T5 are: of an odd depth, of two tables of tokens, with biases that all layers ask for.
STACKS = {
    "tied": StackSpec(16, 3, LayerSpec(HEADS, GELUFeedForwardSpec(1.0)), LearnedPositionSpec()),
    "untied": StackSpec(16, 2, LayerSpec(HEADS, SwiGLUFeedForwardSpec(), norm=RMSNormSpec()), RotaryPositionSpec()),
    "buckets": StackSpec(16, 2, LayerSpec(HEADS, None), RelativeBucketPositionSpec(), input_norm=True),
}
# The gradient of keys' biases is zero but for rounding, which a small eps would make steps of.
OPTIMIZERS: dict[str, OptimizerSpec] = {
    "tied": AdamWSpec(lr=1e-2, eps=1e-3),
    "untied": MuonSpec(lr=1e-2, eps=1e-3),
    "buckets": AdamWSpec(lr=1e-2, eps=1e-3),
}


def language_model(name: str) -> ModelSpec:
    words = DecoderSpec(WORDS, name, tied=name != "untied", logit_bias=name == "untied", chunk=7)
    return ModelSpec({name: STACKS[name]}, {}, {"words": words}, {})


def texts(step: int) -> Text:
    """Ids by chance, in rows with uneven numbers of them, the same at the same step."""
    stream = torch.Generator().manual_seed(step)
    return Text(
        torch.randint(2, 48, (len(LENGTHS), 16), generator=stream), LENGTHS[torch.randperm(8, generator=stream)]
    )


class Training(nn.Module):
    """A model, its averages and its optimizer."""

    def __init__(self, name: str, mesh: Any = None, **options: Any) -> None:
        super().__init__()
        self.model = language_model(name).build()
        self.model.initialise(0)
        if name == "buckets":
            checkpoint_layers(self.model, ActivationCheckpointingSpec())
        if mesh is not None:
            spread(self.model, mesh, **options)
        self.average = EMASpec(0.9).build(self.model)
        self.optimizer = OPTIMIZERS[name].build(self.model)

    def update(self, step: int, parts: int = PARTS) -> dict[str, Tensor]:
        """Learn from micro-batches, so many of this process's part of a batch."""
        batch = Batch(("",) * len(LENGTHS), {}, text=texts(step))
        size = len(LENGTHS) // collectives.data_world_size()
        batch = batch.rows(slice(size * collectives.data_rank(), size * (collectives.data_rank() + 1)))
        self.optimizer.zero_grad()
        with ActivationNorms(self.model) as activations:
            losses = accumulate(
                self.model, {"write": CaptioningSpec(decoder="words").build()}, {"write": 0.5}, batch, parts, backward
            )
        norms = gradient_norms(self.model) | activations.read()
        norm = clip_gradients(self.model.parameters(), 0.1)
        self.optimizer.step()
        self.average.update(self.model, step + 1)
        return losses | norms | {"norm": norm}

    def known(self) -> dict[str, Tensor]:
        """What has been learned: the weights, their averages, and what those foresee of texts."""
        found = {f"weight of {name}": value.clone() for name, value in whole_state(self.model)}
        with self.average.applied(self.model), torch.no_grad():
            found |= {f"average of {name}": value.clone() for name, value in whole_state(self.model)}
            decoder = self.model.decoders["words"]
            assert isinstance(decoder, Decoder)
            (stack,) = self.model.spec.stacks
            found["nats"] = decoder.nats(texts(0).rows(slice(3)), {}, self.model.stack_of(stack))
        return found

    def state(self) -> dict[str, Any]:
        """As of a checkpoint."""
        optimizer = by_name(self.optimizer.state_dict(), self.optimizer, self)
        return {"state_dict": held(self), "optimizer_states": [optimizer]}


def backward(loss: Tensor) -> None:
    loss.backward()


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def assert_same(found: dict[str, Tensor], values: dict[str, Tensor], **close: float) -> None:
    assert found.keys() == values.keys()
    for name, value in values.items():
        torch.testing.assert_close(found[name], value, msg=lambda said, name=name: f"{name}: {said}", **close)
