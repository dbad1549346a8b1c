"""What a stack's layers may look at: made once a pass, and no more of it than their mixers ask for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmformer.errors import InputError
from mmformer.nn.canvas import Canvas, make_canvas
from mmformer.nn.mask import Mask
from mmformer.nn.mixer import MixerSpec, View
from mmformer.nn.pattern import PatternSpec
from mmformer.nn.plan import Plan, make_plan
from mmformer.nn.position import Position, unexpanded
from mmformer.nn.state import counted, totals
from mmformer.types import Tokens


class Viewing:
    """Makes the views of some mixers, under one position."""

    def __init__(self, mixers: Sequence[MixerSpec], crosses: Sequence[MixerSpec], biases: bool) -> None:
        """Args: crosses: those that read a memory; biases: whether the position has a bias."""
        self.biases = biases
        self.lowers_own = any(mixer.takes_lowered_mask for mixer in mixers)
        self.lowers_memory = any(mixer.takes_lowered_mask for mixer in crosses)
        self.asks_order = any(mixer.asks_order for mixer in mixers)
        self.asks_lengths = any(mixer.sparse is not None and mixer.sparse.pattern.over_lengths for mixer in mixers)
        self.laid_out = {axes for mixer in mixers if (axes := mixer.lays_out) is not None}
        self.sparse = {mixer.sparse for mixer in mixers if mixer.sparse is not None}
        biased = (mixer.sparse for mixer in mixers if "bias" in mixer.abilities)
        self.biased = {None if sparse is None else sparse.pattern for sparse in biased}

    def view(self, tokens: Tokens, pos: Tensor, mask: Mask, position: Position, training: bool) -> View:
        """What layers may look at.

        Args:
            tokens: that look.
            pos: B L A, where all keys stand, those of a state among them.
            mask: which of them are seen.
        """
        plans: dict[PatternSpec | None, Plan] = {}
        if self.asks_order:
            mask = mask._replace(pos=unexpanded(pos), order=counted(mask.valid, mask.key_segment))
            if self.asks_lengths:
                mask = mask._replace(total=totals(mask.valid, mask.key_segment, pos.shape[1], pos.device))
            if tokens.x.shape[1] == pos.shape[1]:  # decoding has few queries
                plans = self._plans(mask, tokens.x, position, training)
        # A plan holds the bias of the pairs that it computes. That of all pairs is made where a layer computes all.
        whole = any(pattern not in plans for pattern in self.biased)
        bias = position.bias(tokens.pos, pos) if whole else None
        return View(mask, position.rotary(tokens.pos), bias, plans=plans, canvases=self._canvases(mask, pos))

    def complete(self, view: View, x: Tensor, keys: int) -> View:
        """A view with what is made of it once for all layers: of x, B Q D, at so many keys."""
        return view.with_lowered_mask(x, keys) if self.lowers_own and None not in view.plans else view

    def reading(self, tokens: Tokens, memory: Tokens | None, media: Tensor | None, shared: bool) -> View | None:
        """What tokens may look at in a memory, where there is one.

        Args:
            media: B L, int64: which of its segments each sees; None: that of the token's own.
            shared: it may have fewer rows, each for as many of the tokens' that follow one another.

        Raises:
            InputError: there are no segments for media; the memory has another number of rows.
        """
        if media is not None and (memory is None or memory.segment is None or tokens.segment is not None):
            raise InputError(
                "Media say which segment of a memory each token sees: hand in a memory that has segments, and tokens "
                "that have none."
            )
        if memory is None:
            return None
        rows, asking = len(memory.x), len(tokens.x)
        if asking != rows and not (shared and rows and asking % rows == 0):
            told = ", or a divisor of their number" if shared else ""
            raise InputError(f"A memory has a row for each row of tokens{told}, but {asking} would read {rows}.")
        looking = tokens.segment if media is None else media
        looking = looking if looking is None or rows == asking else looking.reshape(rows, -1)
        view = View(Mask(valid=memory.valid, query_segment=looking, key_segment=memory.segment), memory=memory.x)
        return view.with_lowered_mask(view.merged(tokens.x), memory.x.shape[1]) if self.lowers_memory else view

    def _canvases(self, mask: Mask, pos: Tensor) -> dict[tuple[int, ...], Canvas]:
        made = {axes: make_canvas(mask, axes, pos.shape[1], pos.device) for axes in self.laid_out}
        return {axes: canvas for axes, canvas in made.items() if canvas is not None}

    def _plans(self, mask: Mask, x: Tensor, position: Position, training: bool) -> dict[PatternSpec | None, Plan]:
        plans: dict[PatternSpec | None, Plan] = {}
        bias = position.bias if self.biases else None
        for pattern in dict.fromkeys(each.pattern for each in self.sparse):
            dropout = max(each.dropout for each in self.sparse if each.pattern == pattern) if training else 0.0
            plan = make_plan(mask._replace(pattern=pattern), x.shape[1], x.device, dropout, bias)
            if plan is not None:
                plans[pattern] = plan
        return plans
