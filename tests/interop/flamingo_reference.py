"""Flamingo in plain torch, written from its paper alone (Alayrac et al. 2022): figures 4 and 5, §2.3.1, appendix A.1.

No usable implementation is a dependency: OpenFlamingo wants versions of transformers that are years old. It is small,
slow and direct: a loop over rows and over the tokens of a text, whose pictures are chosen one by one. Around it stand
CLIP's picture encoder and a language model with ALiBi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Queries, keys and values of their own; B L D and B M E -> B L D."""

    def __init__(self, width: int, read: int, heads: int, head_width: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.q = nn.Linear(width, heads * head_width, bias=bias)
        self.k, self.v = (nn.Linear(read, heads * head_width, bias=bias) for _ in range(2))
        self.out = nn.Linear(heads * head_width, width, bias=bias)

    def forward(self, q: Tensor, kv: Tensor, scores: Tensor | float = 0.0) -> Tensor:
        query, key, value = (
            each.view(*each.shape[:2], self.heads, self.head_width).transpose(1, 2)
            for each in (self.q(q), self.k(kv), self.v(kv))
        )
        weights = (query @ key.transpose(2, 3) / math.sqrt(self.head_width) + scores).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class FFW(nn.Module):
    def __init__(self, width: int, hidden: int, bias: bool, quick: bool = False) -> None:
        super().__init__()
        self.norm, self.quick = nn.LayerNorm(width), quick
        self.up, self.down = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(x))
        return self.down(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Block(nn.Module):
    """A layer of CLIP's, or of the language model."""

    def __init__(self, width: int, heads: int, hidden: int, bias: bool, quick: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, width // heads, bias)
        self.ffw = FFW(width, hidden, bias, quick)

    def forward(self, x: Tensor, scores: Tensor | float = 0.0) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, scores)
        return x + self.ffw(x)


class PerceiverLayer(nn.Module):
    """Figure 5: ``x = x + attention_i(q=x, kv=concat([x_f, x])); x = x + ffw_i(x)``."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.norm_media, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, head_width, bias=False)
        self.ffw = FFW(width, hidden, bias=False)

    def forward(self, x: Tensor, x_f: Tensor) -> Tensor:
        latents = self.norm_latents(x)
        x = x + self.attention(latents, torch.cat([self.norm_media(x_f), latents], dim=1))
        return x + self.ffw(x)


class GatedXattnDense(nn.Module):
    """Figure 4: gated cross-attention, then a gated feed-forward."""

    def __init__(self, width: int, read: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, read, heads, head_width, bias=False)
        self.ffw = FFW(width, hidden, bias=False)
        self.alpha_xattn, self.alpha_dense = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, y: Tensor, pictures: Tensor, last: list[int]) -> Tensor:
        """One row: y is 1 L D, pictures N M E, ``last`` the picture that each token sees, from 1; 0: none."""
        normed, seen = self.norm(y), []
        for place, number in enumerate(last):
            token = normed[:, place : place + 1]
            seen.append(self.attention(token, pictures[number - 1][None]) if number else torch.zeros_like(token))
        y = y + self.alpha_xattn.tanh() * torch.cat(seen, dim=1)
        return y + self.alpha_dense.tanh() * self.ffw(y)


class Flamingo(nn.Module):
    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        eye, width, grid, patch = sizes["eye"], sizes["width"], sizes["grid"], sizes["patch"]
        self.placeholder, self.heads = sizes["placeholder"], sizes["heads"]
        self.patches = nn.Conv2d(3, eye, patch, patch, bias=False)
        self.class_token = nn.Parameter(torch.zeros(eye))
        self.place = nn.Parameter(torch.zeros(1 + grid * grid, eye))
        self.norm_pre = nn.LayerNorm(eye)
        self.vision = nn.ModuleList(
            Block(eye, sizes["eye_heads"], sizes["eye_hidden"], True, True) for _ in range(sizes["eye_depth"])
        )
        self.latents = nn.Parameter(torch.zeros(sizes["latents"], eye))
        cross = sizes["cross_heads"], sizes["head_width"]
        self.perceiver = nn.ModuleList(
            PerceiverLayer(eye, *cross, sizes["perceiver_hidden"]) for _ in range(sizes["perceiver_depth"])
        )
        self.perceiver_norm = nn.LayerNorm(eye)
        self.words = nn.Embedding(sizes["vocabulary"], width)
        self.gated = nn.ModuleList(GatedXattnDense(width, eye, *cross, sizes["hidden"]) for _ in range(sizes["depth"]))
        self.language = nn.ModuleList(
            Block(width, self.heads, sizes["hidden"], False, False) for _ in range(sizes["depth"])
        )
        self.norm = nn.LayerNorm(width)

    def resampled(self, pictures: Tensor) -> Tensor:
        """N 3 H W -> N M E: one picture, one frame; the class token is not read."""
        x = self.patches(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.place
        x = self.norm_pre(x)
        for block in self.vision:
            x = block(x)
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.perceiver:
            latents = layer(latents, x[:, 1:])
        return self.perceiver_norm(latents)

    def row(self, ids: list[int], pictures: Tensor) -> Tensor:
        """The logits of one text without padding: L V."""
        last, seen = [], 0
        for index in ids:  # φ of §2.3.1: the number of pictures up to each token
            seen += index == self.placeholder
            last.append(seen)
        resampled = self.resampled(pictures)
        place = torch.arange(len(ids))
        ahead = (place[None] - place[:, None]).float()  # key − query
        slopes = torch.tensor([2.0 ** (-8 * (head + 1) / self.heads) for head in range(self.heads)])
        scores = (slopes[:, None, None] * ahead).masked_fill(ahead > 0, float("-inf"))
        y = self.words(torch.tensor(ids))[None]
        for gated, block in zip(self.gated, self.language, strict=True):
            y = block(gated(y, resampled, last), scores)
        return (self.norm(y) @ self.words.weight.T)[0]

    def forward(self, rows: list[list[int]], pictures: Tensor) -> list[Tensor]:
        return [self.row(ids, shown) for ids, shown in zip(rows, pictures, strict=True)]


def as_reference(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the model that configs/models/flamingo.yaml describes, or their gradients, by the names above."""
    theirs: dict[str, Tensor] = {}
    patches = ours["encoders.image.tokenizer.projection.weight"]
    side = math.isqrt(patches.shape[1] // 3)
    plain = {
        "class_token": ours["encoders.image.special"][0],
        "place": ours["stacks.image.position.weight"],
        "latents": ours["encoders.image.resampler.query"],
        "words.weight": ours["decoders.text.tokenizer.weight"],
        "patches.weight": patches.view(len(patches), 3, side, side),
    }
    ends = {
        "norm_pre": "stacks.image.input_norm",
        "perceiver_norm": "encoders.image.resampler.norm",
        "norm": "stacks.text.norm",
    }

    def branch(there: str, here: str, norm: str | None) -> None:
        for name in ("up", "down"):
            for kind in ("weight", "bias"):
                if f"{here}.{name}.{kind}" in ours:
                    theirs[f"{there}.{name}.{kind}"] = ours[f"{here}.{name}.{kind}"]
        ends[f"{there}.norm"] = norm or f"{here}_residual.norm"

    def attention(there: str, here: str) -> None:
        for kind in ("weight", "bias"):
            if f"{here}.out.{kind}" not in ours:
                continue
            theirs[f"{there}.out.{kind}"] = ours[f"{here}.out.{kind}"]
            if f"{here}.qkv.{kind}" in ours:
                made = ours[f"{here}.qkv.{kind}"].chunk(3)
            else:
                made = (ours[f"{here}.q.{kind}"], *ours[f"{here}.kv.{kind}"].chunk(2))
            theirs.update({f"{there}.{name}.{kind}": value for name, value in zip("qkv", made, strict=True)})

    for index in range(1 + max(int(name.split(".")[3]) for name in ours if name.startswith("stacks.image.layers."))):
        there, here = f"vision.{index}", f"stacks.image.layers.{index}"
        attention(f"{there}.attention", f"{here}.mixer")
        branch(f"{there}.ffw", f"{here}.feedforward", None)
        ends[f"{there}.norm"] = f"{here}.mixer_residual.norm"
    layers = [name.split(".")[4] for name in ours if name.startswith("encoders.image.resampler.layers.")]
    for index in range(1 + max(map(int, layers))):
        there, here = f"perceiver.{index}", f"encoders.image.resampler.layers.{index}"
        attention(f"{there}.attention", f"{here}.attention")
        branch(f"{there}.ffw", f"{here}.feedforward", f"{here}.feedforward_norm")
        ends |= {f"{there}.norm_media": f"{here}.memory_norm", f"{there}.norm_latents": f"{here}.query_norm"}
    depth = 1 + max(int(name.split(".")[3]) for name in ours if name.startswith("stacks.text.layers."))
    for index in range(depth // 2):
        there, here = f"gated.{index}", f"stacks.text.layers.{2 * index}"
        attention(f"{there}.attention", f"{here}.cross")
        branch(f"{there}.ffw", f"{here}.feedforward", None)
        ends[f"{there}.norm"] = f"{here}.cross_residual.norm"
        plain[f"{there}.alpha_xattn"] = ours[f"{here}.cross_residual.gate"]
        plain[f"{there}.alpha_dense"] = ours[f"{here}.feedforward_residual.gate"]
        there, here = f"language.{index}", f"stacks.text.layers.{2 * index + 1}"
        attention(f"{there}.attention", f"{here}.mixer")
        branch(f"{there}.ffw", f"{here}.feedforward", None)
        ends[f"{there}.norm"] = f"{here}.mixer_residual.norm"
    norms = {f"{there}.{kind}": ours[f"{here}.{kind}"] for there, here in ends.items() for kind in ("weight", "bias")}
    return {**theirs, **plain, **norms}
