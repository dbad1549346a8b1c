"""A head over patches: the pixels of all of a picture's, where the encoder saw a part of them alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmformer.errors import InputError
from mmformer.models.head import Head, HeadOutput, HeadSpec, Shared, Source
from mmformer.nn.precision import without_autocast
from mmformer.nn.stack import Stack, StackSpec
from mmformer.tokenizers.image import ImagePatchesSpec, ImageTokenizer
from mmformer.tokenizers.tokenizer import grid_tokens
from mmformer.types import Batch, LossTerm, Outputs, Tokens


@dataclass(frozen=True)
class PixelHeadSpec(HeadSpec):
    """A masked autoencoder's decoder (MAE, He et al. 2021, §3): what the encoder made of the patches that it saw goes
    back to their places, a learned token stands in the others, a stack reads all of them, and a linear map tells the
    pixels of each. Its loss is the squared error over patches that were not seen, the mean over their pixels.

    It has something to say where a batch says which patches are seen (``Batch.seen``), and is left out elsewhere.

    Attributes:
        encoder: the image encoder, of patches.
        stack: the name of the stack over all places, the encoder's special tokens first; of any width.
        normalised: what it is to tell is each patch less its mean, over its deviation (§4.1, table 1d); False: pixels
            as the encoder's tokenizer normalises them.
    """

    encoder: str
    stack: str
    normalised: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.encoder,)

    @property
    def runs(self) -> str:
        return self.stack

    def check(self, where: str, sources: Mapping[str, Source], before: Mapping[str, HeadSpec]) -> None:
        if sources[self.encoder].patches is None:
            raise InputError(
                f"{where}.encoder is '{self.encoder}', whose tokens are not patches of a picture, one for each: name "
                f"an encoder with ImagePatchesSpec and without a resampler."
            )

    def check_stack(self, where: str, stack: StackSpec) -> None:
        """Refuse a stack that cannot read all places.

        Raises:
            InputError: ``where`` is the key of the head.
        """
        if stack.reads_memory:
            raise InputError(
                f"model.stacks.{self.stack}.layer has a cross mixer, but {where} has no memory to read: leave "
                f"layer.cross out."
            )
        stack.require_able(f"model.stacks.{self.stack}", ["bidirectional"], where)

    def build(self, sources: Mapping[str, Source], shared: Shared) -> PixelHead:
        source = sources[self.encoder]
        assert source.patches is not None, "it is checked"
        return PixelHead(self, source, source.patches, shared.stacks[self.stack])


class PixelHead(Head):
    undecayed = ("unseen",)

    def __init__(self, spec: PixelHeadSpec, source: Source, patches: ImagePatchesSpec, stack: Stack) -> None:
        super().__init__()
        width = stack.spec.width
        self.spec, self.special, self.patch = spec, source.special, patches.patch
        self.tokenizer = ImageTokenizer(patches)  # how pictures are normalised; it has no weights
        self.enter = nn.Linear(source.tokens, width)
        self.unseen = nn.Parameter(torch.empty(width))
        self.projection = nn.Linear(width, 3 * patches.patch**2)
        self._stack = (stack,)  # in a tuple: it is the model's, and registered there
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.unseen, std=0.02)

    def forward(self, outputs: Outputs, batch: Batch) -> HeadOutput | None:
        if batch.seen is None or self.spec.encoder not in outputs.tokens:
            return None
        assert isinstance(batch.image, Tensor), "pictures of one size: who says what is seen knows it"
        rows, columns = (side // self.patch for side in batch.image.shape[2:])
        tokens = outputs.tokens[self.spec.encoder]
        special, shown = self.enter(tokens.x).tensor_split((self.special,), dim=1)  # B S W, B K W
        every = self.unseen.to(shown.dtype).expand(len(shown), rows * columns, -1)
        every = every.scatter(1, batch.seen[..., None].expand_as(shown), shown)  # B L W
        places = grid_tokens(every, rows, columns).pos
        pos = torch.cat((tokens.pos[:, : self.special], places), dim=1)
        left = self._stack[0](Tokens(torch.cat((special, every), dim=1), pos))
        pixels = self.projection(left.tokens.x[:, self.special :])  # B L (P P 3)
        with torch.no_grad(), without_autocast(pixels):
            target = self.target(batch.image[:, :, : rows * self.patch, : columns * self.patch])
        error = (pixels.float() - target).square().mean(-1)  # B L
        hidden = torch.ones_like(error).scatter(1, batch.seen, 0.0)
        return HeadOutput(logits=pixels, loss=LossTerm((error * hidden).sum(), hidden.sum()), aux=left.aux)

    def target(self, image: Tensor) -> Tensor:
        """What it is to tell of pictures, B 3 H W: B L (P P 3), each patch's pixels row by row, channels together."""
        x = F.pixel_unshuffle(self.tokenizer.normalise(image), self.patch)  # B (3 P P) rows columns
        batch, _, rows, columns = x.shape
        x = x.view(batch, 3, self.patch**2, rows, columns).permute(0, 3, 4, 2, 1)
        x = x.reshape(batch, rows * columns, -1)
        if not self.spec.normalised:
            return x
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        return (x - mean) * (variance + 1e-6).rsqrt()
