"""What decoders write of what a user hands in: captions, translations, transcripts, and texts that go on."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

from PIL import Image

from mmformer.data.picture import Picture, Pictures
from mmformer.data.waveform import Waveform, Waveforms
from mmformer.errors import InputError, nearest
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.packs import Packs
from mmformer.generation.sampling import GreedySpec
from mmformer.generation.writing import write_texts
from mmformer.inference import Inference, Progress
from mmformer.reader import WORDS
from mmformer.types import Tokens
from mmformer.uses import uses

One = str | os.PathLike[str] | bytes | Image.Image
"""One picture for certain; an array may be several."""


class _FreeOptions(TypedDict, total=False):
    spec: GenerationSpec | None
    decoder: str | None
    progress: Progress | None


class _Options(_FreeOptions, total=False):
    prompt: str | Sequence[str]


class _CaptionOptions(_Options, total=False):
    text: str | None


class Writer(Inference):
    """What all of its methods take:

    prompt: what each written text begins with; one for all, or one for each.
    spec: how ids are chosen, such as ``BeamSpec(beams=4)``; None: as the bundle says, or ``GreedySpec()``.
    decoder: which, where several read what is handed in.
    progress: called as values are done.

    They return a string, with its prompt, or a list of them for a list of values, and raise InputError where no decoder
    reads just what is handed in, or where there are not as many values or prompts of one as of another.
    """

    @overload
    def caption(self, image: One, **options: Unpack[_CaptionOptions]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def caption(self, image: Sequence[Picture], **options: Unpack[_CaptionOptions]) -> list[str]: ...
    @overload
    def caption(self, *, audio: Waveform, **options: Unpack[_CaptionOptions]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def caption(self, *, audio: Waveforms, **options: Unpack[_CaptionOptions]) -> list[str]: ...
    @overload
    def caption(self, *, text: str) -> str: ...
    @overload
    def caption(
        self,
        image: Picture | Pictures | None = None,
        *,
        audio: Waveform | Waveforms | None = None,
        text: str | Sequence[str] | None = None,
        **options: Unpack[_Options],
    ) -> str | list[str]: ...
    def caption(
        self,
        image: Picture | Pictures | None = None,
        *,
        audio: Waveform | Waveforms | None = None,
        text: str | Sequence[str] | None = None,
        **options: Unpack[_Options],
    ) -> str | list[str]:
        """What a decoder writes of each value, or of values of several modalities that it reads together.

        Args:
            image: one picture, or a list of them.
            audio: one sound, or a list of them.
            text: one text that is read, such as a question about the picture, or a list of them. Of several
                modalities, each has as many values as the others, or one for all.
            options: see the class.
        """
        return self._write("caption", {"image": image, "audio": audio, "text": text}, options)

    @overload
    def translate(self, text: str, **options: Unpack[_Options]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def translate(self, text: Sequence[str], **options: Unpack[_Options]) -> list[str]: ...
    def translate(self, text: str | Sequence[str], **options: Unpack[_Options]) -> str | list[str]:
        """What a decoder writes that reads a text.

        Args:
            text: one text, or a list of them.
            options: see the class.
        """
        return self._write("translate", {"text": text}, options)

    @overload
    def transcribe(self, audio: Waveform, **options: Unpack[_Options]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def transcribe(self, audio: Waveforms, **options: Unpack[_Options]) -> list[str]: ...
    def transcribe(self, audio: Waveform | Waveforms, **options: Unpack[_Options]) -> str | list[str]:
        """What a decoder writes that reads a sound.

        Args:
            audio: one sound, or a list of them: a path, bytes, or (samples, rate).
            options: see the class.
        """
        return self._write("transcribe", {"audio": audio}, options)

    @overload
    def generate(self, prompt: str = "", **options: Unpack[_FreeOptions]) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[_FreeOptions]) -> list[str]: ...
    def generate(
        self,
        prompt: str | Sequence[str] = "",
        **options: Unpack[_FreeOptions],
    ) -> str | list[str]:
        """What a decoder writes that reads nothing: a language model's texts.

        Args:
            prompt: what a text begins with, or a list of such beginnings; "": nothing.
            options: see the class.
        """
        name = self.decoder_of("generate", (), options.get("decoder"))
        single, prompts = self.reader.listed("text", prompt)
        batches = self._nothing(len(prompts), options.get("progress"))
        texts = self._texts(name, prompts, self._way(options.get("spec")), batches)
        return texts[0] if single else texts

    def _write(self, command: str, values: Mapping[str, Any], options: _Options) -> str | list[str]:
        single, read = self.reader.together(command, **values)
        name, number = self.decoder_of(command, read, options.get("decoder")), len(next(iter(read.values())))
        spec = self._way(options.get("spec"))
        one, prompts = self.reader.listed("text", options.get("prompt", ""))
        prompts = prompts * number if one else prompts
        if len(prompts) != number:
            raise InputError(
                f"There are {len(prompts)} prompts for {number} {WORDS[next(iter(read))]}: give one for each."
            )
        batches = ((places, outputs.tokens) for places, outputs in self.run(read, options.get("progress")))
        texts = self._texts(name, prompts, spec, batches)
        return texts[0] if single else texts

    def _texts(
        self,
        decoder: str,
        prompts: Sequence[str],
        spec: GenerationSpec,
        batches: Iterator[tuple[list[int], Mapping[str, Tokens]]],
    ) -> list[str]:
        """What a decoder writes after each prompt, of batches of places with what is read at them."""
        texts, packs = [""] * len(prompts), Packs()
        for places, memory in batches:
            begun = [prompts[place] for place in places]
            written = write_texts(self.model, decoder, memory, begun, spec, places, packs)
            for place, text in zip(places, written, strict=True):
                texts[place] = text
        return texts

    def _nothing(self, number: int, progress: Progress | None) -> Iterator[tuple[list[int], Mapping[str, Tokens]]]:
        for first in range(0, number, self.batch_size):
            places = list(range(first, min(first + self.batch_size, number)))
            yield places, {}
            if progress is not None:
                progress(len(places))

    def _way(self, asked: GenerationSpec | None) -> GenerationSpec:
        return checked(asked or self.transforms.generation)

    def decoder_of(self, command: str, modalities: Collection[str], wanted: str | None) -> str:
        """The decoder to write with: one that reads these modalities, all of them and no other.

        Raises:
            InputError: there is none, or none was named among several.
        """
        spec = self.model.spec
        fit = [name for name, part in spec.decoders.items() if spec.modalities_of(part.reads) == {*modalities}]
        if wanted is None and len(fit) == 1:
            return fit[0]
        if wanted in fit:
            return wanted
        read = {name: " and ".join(part.reads) or "nothing" for name, part in spec.decoders.items()}
        known = "; ".join(f"{name} reads {what}" for name, what in read.items()) or "none"
        absent = sorted({*modalities} - spec.modalities_of(spec.encoders))
        lacks = f"has no encoder of {' or '.join(absent)}, and its decoders are" if absent else "has the decoders"
        asked = f"{' and '.join(modalities)} alone" if modalities else "nothing"
        what = f"{command} needs a decoder that reads {asked} ({wanted or 'none was named'}), but the model {lacks}:"
        able = f" It can {', '.join(uses(spec))}." if not fit else f" Name one of {', '.join(fit)}."
        raise InputError(f"{what} {known}.{nearest(wanted or '', fit)}{able}")


def checked(spec: GenerationSpec | None) -> GenerationSpec:
    """How ids are chosen.

    Raises:
        InputError: what was handed in is no such thing.
    """
    if spec is not None and not isinstance(spec, GenerationSpec):
        raise InputError(
            f"spec must say how texts are written, such as BeamSpec(beams=4), but is {type(spec).__name__}."
        )
    return spec or GreedySpec()
