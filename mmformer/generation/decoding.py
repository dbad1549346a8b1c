"""A decoder, what it reads, and the cache: logits of the next id, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from mmformer.errors import InputError, nearest
from mmformer.generation.captured import Captured, Held, can_capture
from mmformer.generation.packs import Packed, Packs
from mmformer.generation.progress import Progress, take
from mmformer.models.decoder import Decoder
from mmformer.models.model import Model
from mmformer.nn.stack import Stack
from mmformer.types import Text, Tokens

PATIENCE = 8
"""Ids that are written before weights are packed, or steps recorded: which takes about as long as is gained by so many.
Where a recording is of use no longer, as many are written before the next.
"""


class Decoding:
    """A decoder over a batch of inputs; it holds what it reads of them, and no progress.

    On a CPU, texts of more than a few ids are written with weights that are packed (``nn/prepacked.py``). They are held
    beside the model's, and do not see what becomes of those before it begins again, nor then where ``packs`` has them.
    On a CUDA device they are written by steps that it recorded, where it can (``generation/captured.py``).

    Args:
        model: in evaluation mode.
        name: of the decoder.
        memory: encoder -> what left its stack, for all that the decoder reads; B rows each.
        rows: B, for a decoder that reads nothing.
        packs: holds packed weights for further batches; None: they are this one's alone.

    Raises:
        InputError: no such decoder, or nothing of an encoder that it reads.
    """

    def __init__(
        self, model: Model, name: str, memory: Mapping[str, Tokens], rows: int, packs: Packs | None = None
    ) -> None:
        if name not in model.decoders:
            known = ", ".join(model.decoders) or "none"
            raise InputError(f"There is no decoder '{name}': the model's are {known}.{nearest(name, model.decoders)}")
        decoder = model.decoders[name]
        assert isinstance(decoder, Decoder)
        missing = [read for read in decoder.spec.reads if read not in memory]
        if missing:
            raise InputError(f"The decoder '{name}' reads '{missing[0]}', but nothing of it was handed in.")
        self.decoder, self.stack = decoder, model.stack_of(decoder.spec.stack)
        self.memory = {read: memory[read] for read in decoder.spec.reads}
        self.rows = rows
        self._steps, self._rows = 0, rows
        self._unrecorded = 0  # of the steps, those since the last one that was recorded
        self._packs = packs
        self._packed: Packed | None = None
        unwritten = self.decoder.tokenizer.unwritten
        self._unwritten = torch.tensor(unwritten, device=self.device) if unwritten else None

    @property
    def context_length(self) -> int:
        """Ids at most in a text, eos with them."""
        return self.decoder.spec.tokenizer.context_length

    @property
    def start(self) -> int | None:
        """The id that texts begin with, which is no part of them; None: there is none."""
        return self.decoder.tokenizer.special.first

    @property
    def device(self) -> torch.device:
        return self.decoder.tokenizer.table.device

    def begin(self, prompt: Text) -> tuple[Tensor, Held]:
        """The logits of the first id after prompts that begin with bos, of any lengths: B V, float32."""
        self._steps = self._unrecorded = 0
        self._packed = None if self._packs is None else self._packs.held(self.decoder, len(prompt.ids))
        if prompt.valid is None and bool((prompt.lengths == prompt.ids.shape[1]).all()):
            prompt = prompt._replace(whole=True)
        stack = self._fastest()
        decoded = self.decoder(prompt, self.memory, stack, state=stack.empty_state())
        last = (prompt.lengths - 1)[:, None, None].expand(-1, 1, decoded.x.shape[2])
        assert decoded.state is not None
        logits = self._logits(decoded.x.gather(1, last))
        logits[:, list(self.decoder.tokenizer.special.unwritten_first)] = float("-inf")
        return logits, Progress(decoded.state, prompt.lengths)

    def step(self, ids: Tensor, progress: Held) -> tuple[Tensor, Held]:
        """The logits of the id after ``ids``, B, which follow what is held: B V, float32."""
        self._steps += 1
        if isinstance(progress, Captured):
            if progress.may_go_on:
                return progress.step(ids), progress
            progress = progress.released()
        if self._steps == 1:
            self._rows = len(ids)
            self._packed = None if self._packs is None else self._packs.held(self.decoder, len(ids))
        elif self._steps == PATIENCE and self._packed is None:
            # As many as there were at first, which another batch has too; fewer are filled up.
            rows = self._rows if 2 * len(ids) >= self._rows else len(ids)
            self._packed = (self._packs or Packs()).pack(self.decoder, self.stack, rows)
        self._unrecorded += 1
        if self._unrecorded >= PATIENCE and can_capture(self.decoder, self.stack, progress):
            self._unrecorded = -self.context_length  # if there is no room for what it holds a second time: never again
            with suppress(torch.OutOfMemoryError):
                captured = Captured(self._after, ids, progress, self.memory, max(1, self.context_length - self._steps))
                logits = captured.step(ids)
                self._unrecorded = 0
                return logits, captured
        return self._after(ids, progress, self.memory)

    def _after(self, ids: Tensor, progress: Progress, memory: Mapping[str, Tokens]) -> tuple[Tensor, Progress]:
        text = Text(ids[:, None], torch.ones_like(ids), whole=True)
        decoded = self.decoder(text, memory, self._fastest(), progress.lengths, progress.stack)
        assert decoded.state is not None
        return self._logits(decoded.x), Progress(decoded.state, progress.lengths + 1)

    def select(self, rows: Tensor) -> Decoding:
        """The same over some of the inputs."""
        other = object.__new__(Decoding)
        other.decoder, other.stack, other.rows = self.decoder, self.stack, len(rows)
        other.memory = take(self.memory, rows)
        other._steps, other._rows, other._packs, other._packed = self._steps, self._rows, self._packs, self._packed
        other._unrecorded = self._unrecorded
        other._unwritten = self._unwritten
        return other

    def _fastest(self) -> Stack:
        return self.stack if self._packed is None or torch.is_grad_enabled() else self._packed.stack

    def _logits(self, x: Tensor) -> Tensor:  # B 1 D -> B V
        packed = None if torch.is_grad_enabled() else self._packed
        logits = self.decoder.logits(x[:, 0], None if packed is None else packed.pieces).float()
        return logits if self._unwritten is None else logits.index_fill_(1, self._unwritten, float("-inf"))
