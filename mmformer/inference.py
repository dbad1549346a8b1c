"""A model over what users hand in, batch by batch: what stands behind ``Predictor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmformer.bundle import Transforms
from mmformer.errors import InputError, nearest
from mmformer.models.head import ClassHeadSpec, ContrastiveHead
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model
from mmformer.reader import Reader
from mmformer.types import Audio, Outputs
from mmformer.uses import uses

Progress = Callable[[int], object]
"""Called with the number of items that were just done."""

Ids = Tensor | Sequence[Sequence[int]]


class Inference:
    """Attributes:
    model: ``model(batch)`` returns Outputs, for those who make their own batches.
    transforms: what is done to pictures and sounds, and the classes that the heads know.
    reader: makes batches of what people have.
    chosen: modality -> the encoder that embeds it, where the model has several.
    """

    def __init__(
        self,
        model: Model,
        transforms: Transforms,
        device: torch.device | str,
        batch_size: int,
        encoders: str | Sequence[str] = (),
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, but is {batch_size}.")
        self.model, self.transforms, self.batch_size = model, transforms, batch_size
        self.device = torch.device(device)
        self.reader = Reader(model.spec, transforms, batch_size)
        self.chosen: dict[str, str] = {}
        for name in [encoders] if isinstance(encoders, str) else encoders:
            known = model.spec.encoders
            if name not in known:
                raise InputError(
                    f"The model has no encoder '{name}'; its encoders are {', '.join(known)}.{nearest(name, known)}"
                )
            other = self.chosen.setdefault(known[name].tokenizer.modality, name)
            if other != name:
                raise InputError(
                    f"The encoders '{other}' and '{name}' both read {known[name].tokenizer.modality}: choose one."
                )

    def embed_given(self, modality: str, value: Any, progress: Progress | None = None) -> Tensor:
        """E for one value, N E for a list.

        Raises:
            InputError: there is no value, or one cannot be read or is an empty text.
        """
        single, values = self.reader.listed(modality, value)
        if modality == "text" and any(not text.strip() for text in values):
            raise InputError("A text is empty: there is nothing in it to compare. Leave it out.")
        embedded = self.embed_values(modality, values, progress)
        return embedded[0] if single else embedded

    def embed_values(self, modality: str, values: Sequence[Any], progress: Progress | None) -> Tensor:
        """N E, of unit length, in the order of the values."""
        name = self.encoder_of(modality)
        made = ((places, outputs.embedding[name]) for places, outputs in self.run({modality: values}, progress))
        return F.normalize(_in_order(made), dim=-1)

    def run(
        self, values: Mapping[str, Sequence[Any]], progress: Progress | None
    ) -> Iterator[tuple[list[int], Outputs]]:
        """The model over the values of one modality, or of several that belong together, batch by batch, and places.
        Encoders' tokens that no part of the model reads are left out. While batches are taken, the model's parameters
        are to stay as they are.

        Raises:
            InputError: the model does not read a modality, or a value cannot be read.
        """
        for modality in values:
            self.encoders_of(modality)
        with torch.inference_mode():
            model = self.model.for_many()
        for places, batch in self.reader.batches(values):
            with torch.inference_mode():
                outputs = model(batch.to(self.device), decode=False, tokens=False)
            yield places, outputs
            if progress is not None:
                progress(len(places))

    def head_logits(
        self, modality: str, values: Sequence[Any], head: str | None, progress: Progress | None
    ) -> tuple[str, Tensor, list[str]]:
        """Which head it is; N classes, in the order of the values; and the classes' names, each there once."""
        known = [
            name
            for name, spec in self.model.spec.heads.items()
            if isinstance(spec, ClassHeadSpec)
            and self.model.spec.encoders[spec.encoder].tokenizer.modality == modality
            and name in self.transforms.classes
        ]
        if head is None and len(known) == 1:
            head = known[0]
        if head not in known:
            raise InputError(
                f"Without labels, a classification head is asked ({head or 'none was named'}), but the model's are "
                f"{', '.join(known)}: name one of them.{nearest(head or '', known)}"
                if known
                else f"The model has no classification head of its own for {modality}: {self._instead()}"
            )
        made = ((places, outputs.logits[head]) for places, outputs in self.run({modality: values}, progress))
        return head, _in_order(made), _distinct(self.transforms.classes[head])

    def scale(self, wanted: str | None = None) -> float:
        """The factor on cosine similarities that the model's contrastive head learned.

        Args:
            wanted: which, where there are several.
        """
        return float(self.contrastive_head(wanted).scale.detach())

    def label_probabilities(self, similarities: Tensor, wanted: str | None = None) -> Tensor:
        """N labels, of cosine similarities: among the labels; each label's own where the head has a bias.

        A bias is there for the sigmoid loss, which asks of every pair by itself whether it belongs together (SigLIP,
        Zhai et al. 2023, §3.2): such probabilities do not add up to 1.
        """
        head = self.contrastive_head(wanted)
        with torch.inference_mode():
            logits = head.scale.cpu() * similarities
            return logits.softmax(-1) if head.bias is None else (logits + head.bias.cpu()).sigmoid()

    def _instead(self) -> str:
        """What to do where no head classifies."""
        able = uses(self.model.spec)
        return "say which labels to choose from." if "classify" in able else f"it can {', '.join(able)}."

    def contrastive_head(self, wanted: str | None = None) -> ContrastiveHead:
        """What compares pictures or sounds with texts.

        Args:
            wanted: which, where there are several.
        """
        heads = {name: head for name, head in self.model.heads.items() if isinstance(head, ContrastiveHead)}
        if wanted is None and len(heads) == 1:
            wanted = next(iter(heads))
        if wanted not in heads:
            raise InputError(
                f"Labels are compared by a contrastive head ({wanted or 'none was named'}), but the model's are "
                f"{', '.join(heads)}: name one of them.{nearest(wanted or '', heads)}"
                if heads
                else "Zero-shot classification needs a contrastive head, but the model has none."
            )
        return heads[wanted]

    def logits(
        self,
        ids: Ids | None = None,
        *,
        decoder_ids: Ids | None = None,
        image: Tensor | None = None,
        audio: Tensor | None = None,
        valid: Ids | None = None,
        type_ids: Ids | None = None,
        global_mask: Ids | None = None,
        part: str | None = None,
    ) -> Tensor:
        """Logits over the vocabulary, of ids as they are: nothing is put before or after them.

        Args:
            ids: B L, what a text encoder reads; where a decoder reads no text, what it has written so far.
            decoder_ids: B M, what a decoder that reads a text has written so far.
            image: B 3 H W, uint8, or float32 where it is normalised already; B N 3 H W where rows have several.
            audio: B S, float32, sounds of the rate that the model reads, all as long as the longest.
            valid: B L, of ids, which of them are real; None: all.
            type_ids: B L, of ids, the segments that they belong to, where the model tells those apart.
            global_mask: B L, of ids, which of them see all and are seen by all (Longformer); None: none.
            part: the decoder or language head that is asked, where there are several.

        Returns:
            B L V, float32, on the model's device: of the id that follows each, or of each that is hidden.

        Raises:
            InputError: the model has no such part, or what it reads is missing, or is not read.
        """

        def placed(value: Ids | None) -> Tensor | None:
            return None if value is None else torch.as_tensor(value).to(self.device)

        first, second = placed(ids), placed(decoder_ids)
        more = (placed(valid), placed(type_ids), placed(global_mask))
        if first is None and any(value is not None for value in more):
            raise InputError("valid, type_ids and global_mask say more of ids, but there are none.")
        read = None if first is None else text_of(first, *more)
        written = None if second is None else text_of(second)
        sound = None if audio is None else Audio(audio.to(self.device), _full(audio), self.sound_rate())
        others = {"image": None if image is None else image.to(self.device), "audio": sound}
        with torch.inference_mode():
            return text_logits(self.model, part, read, written, others).float()

    def sound_rate(self) -> int:
        """Samples a second of the sounds that the model reads."""
        return int(self.model.spec.encoders[self.encoder_of("audio")].tokenizer.rate)  # type: ignore[attr-defined]

    def encoders_of(self, modality: str) -> list[str]:
        """The names of the encoders that read a modality; one at least."""
        encoders = self.model.spec.encoders
        found = [name for name, spec in encoders.items() if spec.tokenizer.modality == modality]
        if not found:
            reads = ", ".join(dict.fromkeys(spec.tokenizer.modality for spec in encoders.values()))
            only = f", only {reads}" if reads else ": it has no encoders"
            raise InputError(f"This model reads no {modality}{only}. It can {', '.join(uses(self.model.spec))}.")
        return found

    def encoder_of(self, modality: str) -> str:
        """The name of the encoder that embeds a modality."""
        found = self.encoders_of(modality)
        if modality not in self.chosen and len(found) > 1:
            raise InputError(
                f"The model has {len(found)} encoders of {modality}: {', '.join(found)}. Choose one when it is loaded: "
                f"mmformer.load(..., encoders=['{found[0]}']), or --encoder {found[0]}."
            )
        return self.chosen.get(modality, found[0])

    def check_comparable(self, first: str, second: str) -> None:
        """Refuse two modalities whose embeddings differ in width: they were not trained to be compared."""
        names = self.encoder_of(first), self.encoder_of(second)
        widths = [self.model.spec.embedding_widths[name] for name in names]
        if widths[0] != widths[1]:
            raise InputError(
                f"The embeddings of {names[0]} are {widths[0]} wide and those of {names[1]} are {widths[1]}: they "
                f"cannot be compared."
            )


def _full(audio: Tensor) -> Tensor:
    return torch.full((len(audio),), audio.shape[1], dtype=torch.int64, device=audio.device)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that are there more than once with their number behind: two of ImageNet's classes are called crane."""
    times = Counter(names)
    return [f"{name} [{number}]" if times[name] > 1 else name for number, name in enumerate(names)]


def _in_order(made: Iterator[tuple[list[int], Tensor]]) -> Tensor:
    """Rows that were computed at these places, N D, float32 on the CPU, in the order of the places."""
    order: list[int] = []
    parts = []
    for places, rows in made:
        order += places
        parts.append(rows.float().cpu())
    return torch.cat(parts)[torch.tensor(order).argsort()]
