"""How sounds are prepared, both ways: as transformers keeps it (``preprocessor_config.json``, or in
``processor_config.json`` under ``feature_extractor``), and as our tokenizers and transforms have it.

ASTFeatureExtractor's numbers are those that it has with torchaudio; without, it makes the same by NumPy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from mmformer.data.sound import AudioTransformSpec
from mmformer.errors import InputError, nearest
from mmformer.interop.checkpoint import read_json, write_json
from mmformer.tokenizers.kaldi import KaldiFilterbankSpec
from mmformer.tokenizers.spectrogram import SpectrogramSpec
from mmformer.tokenizers.whisper_mel import WhisperLogMelSpec, mel_filters

S = TypeVar("S", bound=SpectrogramSpec)
Config = Mapping[str, Any]


class _Read(NamedTuple):
    """What a config says."""

    fields: dict[str, Any]  # of a tokenizer
    transform: AudioTransformSpec


class _Extractor(NamedTuple):
    """One of transformers' feature extractors."""

    spectrum: type
    defaults: Config  # what it means where a config says nothing
    fixed: Config  # what it always has: in our tokenizers there is no place for another value
    derived: Mapping[str, Callable[[Config], Any]]  # what is made of the rest, and may be told
    read: Callable[[Config, str], _Read]
    write: Callable[[SpectrogramSpec], dict[str, Any]]


def read_sounds(config: Config, tokenizer: S, where: str) -> tuple[S, AudioTransformSpec]:
    """The tokenizer with the spectrogram that a feature extractor makes, and the transform that goes before it.

    Args:
        config: the file's.
        tokenizer: as the model's own config has it: its ``bands`` and ``frames`` have to be the extractor's.
        where: the file, for messages.

    Raises:
        InputError: an extractor that is not known, a key that is not its, or a value that our parts cannot express;
            it has both sides.
    """
    config = config.get("feature_extractor", config)
    name, extractor = _named(config, where)
    told = {*extractor.defaults, *extractor.fixed, *extractor.derived}
    told |= {"mel_filters"} if extractor.spectrum is WhisperLogMelSpec else set()
    for key in set(config) - told - _UNREAD:
        raise InputError(f"{where} has {key} {config[key]!r:.80}, which {name} has not.{nearest(key, told)}")
    whole = {**extractor.defaults, **extractor.fixed, **config}
    for key, default in extractor.defaults.items():
        _check_type(key, whole[key], default, where)
    derived = {key: make(whole) for key, make in extractor.derived.items() if key in config}
    for key, ours in {**extractor.fixed, **derived}.items():
        if whole[key] != ours:
            raise InputError(f"{where} has {key} {whole[key]!r}, but what mmformer can express is {key} {ours!r}.")
    fields, transform = extractor.read(whole, where)
    for key in ("bands", "frames"):
        if fields[key] != getattr(tokenizer, key):
            raise InputError(
                f"{where} makes spectrograms of {fields[key]} {key}, but the model reads {getattr(tokenizer, key)}."
            )
    made = dataclasses.replace(tokenizer, **fields)
    _check_filters(config, made, where)
    return made, transform


def write_sounds(tokenizer: SpectrogramSpec, transform: AudioTransformSpec, where: str) -> dict[str, Any]:
    """The feature extractor's config that makes the same of a sound.

    Raises:
        InputError: there is none that does; the first difference is told.
    """
    found = type(tokenizer.spectrum)
    name = next((name for name, each in _EXTRACTORS.items() if each.spectrum is found), None)
    if name is None:
        known = " or ".join(each.spectrum.__name__ for each in _EXTRACTORS.values())
        raise InputError(f"{where}: transformers has no feature extractor for {found.__name__}, only for {known}.")
    extractor = _EXTRACTORS[name]
    config = {"feature_extractor_type": name, **extractor.fixed, **extractor.write(tokenizer)}
    config |= {key: make(config) for key, make in extractor.derived.items()}
    fields, back = extractor.read(config, where)
    pairs = [(f"{type(tokenizer).__name__}.{key}", getattr(tokenizer, key), value) for key, value in fields.items()]
    ours, theirs = dataclasses.asdict(transform), dataclasses.asdict(back)
    pairs += [(f"{type(transform).__name__}.{key}", value, theirs[key]) for key, value in ours.items()]
    for key, own, its in pairs:
        if own != its:
            raise InputError(f"{where}: {key} is {own!r}, but {name}, as near as it comes, would make it {its!r}.")
    return dict(sorted(config.items()))


def folder_sounds(folder: Path | None, tokenizer: S) -> tuple[S, AudioTransformSpec]:
    """What the files beside a model say of sounds; where they say nothing, the tokenizer as it is.

    Raises:
        InputError: a file that cannot be read, or what cannot be expressed.
    """
    file = _file(folder)
    if file is not None:
        return read_sounds(read_json(file), tokenizer, str(file))
    extractor = next(each for each in _EXTRACTORS.values() if isinstance(tokenizer.spectrum, each.spectrum))
    return tokenizer, extractor.read(extractor.write(tokenizer), "").transform


def write_folder_sounds(folder: Path, tokenizer: SpectrogramSpec, transform: AudioTransformSpec, where: str) -> None:
    """The feature extractor's config beside a model; one that is there and says the same stays as it is.

    Raises:
        InputError: there is no extractor that does this.
    """
    file = _file(folder)
    if file is not None and folder_sounds(folder, tokenizer) == (tokenizer, transform):
        return
    config = write_sounds(tokenizer, transform, where)
    if file is not None and file.name == "processor_config.json":
        config = {**read_json(file), "feature_extractor": config}
    write_json(file or folder / "preprocessor_config.json", config)


def _file(folder: Path | None) -> Path | None:
    """The file of a folder that describes a feature extractor."""
    for name, key in (
        ("processor_config.json", "feature_extractor"),
        ("preprocessor_config.json", "feature_extractor_type"),
    ):
        if folder is not None and (folder / name).is_file() and key in read_json(folder / name):
            return folder / name
    return None


def _named(config: Config, where: str) -> tuple[str, _Extractor]:
    name = str(config.get("feature_extractor_type"))
    if name not in _EXTRACTORS:
        raise InputError(
            f"{where} has feature_extractor_type {name}, but the extractors that mmformer reads are "
            f"{', '.join(_EXTRACTORS)}.{nearest(name, _EXTRACTORS)}"
        )
    return name, _EXTRACTORS[name]


def _check_type(key: str, value: Any, default: Any, where: str) -> None:
    """Refuse what is not of a default's type, and lengths below 1."""
    fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
    if not fits or (type(default) is int and value < 1):
        must = {bool: "true or false", int: "a whole number, at least 1", float: "a number"}[type(default)]
        raise InputError(f"{where} has {key} {value!r}, but it must be {must}.")


def _read_ast(config: Config, where: str) -> _Read:
    rate, frames = config["sampling_rate"], config["max_length"]
    window, hop = int(rate * 25.0 * 0.001), int(rate * 10.0 * 0.001)  # in this order, as torchaudio rounds
    normalised = config["do_normalize"]
    fields = {
        "rate": rate,
        "window": window,
        "hop": hop,
        "bands": config["num_mel_bins"],
        "lowest": 20.0,
        "highest": None,
        "mean": config["mean"] if normalised else 0.0,
        "std": 2 * config["std"] if normalised else 1.0,
        "frames": frames,
        "spectrum": KaldiFilterbankSpec(),
    }
    # The first hundredth of a second by whose end all frames have their samples.
    seconds = math.floor(100 * (window + (frames - 1) * hop) / rate + 1) / 100
    return _Read(fields, AudioTransformSpec(rate, seconds))


def _write_ast(tokenizer: SpectrogramSpec) -> dict[str, Any]:
    return {
        "sampling_rate": tokenizer.rate,
        "num_mel_bins": tokenizer.bands,
        "max_length": tokenizer.frames or 1024,
        "do_normalize": True,
        "mean": tokenizer.mean,
        "std": tokenizer.std / 2,
    }


def _read_whisper(config: Config, where: str) -> _Read:
    rate, hop, seconds = config["sampling_rate"], config["hop_length"], config["chunk_length"]
    if rate * seconds % hop:
        raise InputError(
            f"{where} has hop_length {hop}, but mmformer's spectrogram is of whole hops: the {rate * seconds:,} "
            f"samples of chunk_length {seconds} are no multiple of it."
        )
    fields = {
        "rate": rate,
        "window": config["n_fft"],
        "hop": hop,
        "bands": config["feature_size"],
        "lowest": 0.0,
        "highest": 8000.0,
        "mean": -4.0,
        "std": 4.0,
        "frames": rate * seconds // hop,
        "spectrum": WhisperLogMelSpec(),
    }
    return _Read(fields, AudioTransformSpec(rate, float(seconds)))


def _write_whisper(tokenizer: SpectrogramSpec) -> dict[str, Any]:
    assert tokenizer.frames is not None, "WhisperLogMelSpec has seen to it"
    return {
        "sampling_rate": tokenizer.rate,
        "n_fft": tokenizer.window,
        "hop_length": tokenizer.hop,
        "feature_size": tokenizer.bands,
        "chunk_length": tokenizer.frames * tokenizer.hop // tokenizer.rate,
    }


def _check_filters(config: Config, tokenizer: SpectrogramSpec, where: str) -> None:
    """Refuse filters other than those that transformers makes, which does not read them from the file."""
    if "mel_filters" not in config or not isinstance(tokenizer.spectrum, WhisperLogMelSpec):
        return
    theirs, ours = torch.tensor(config["mel_filters"], dtype=torch.float32), mel_filters(tokenizer)
    if not any(ours.shape == each.shape and torch.allclose(ours, each, atol=1e-6) for each in (theirs, theirs.T)):
        raise InputError(f"{where} has mel_filters {tuple(theirs.shape)} that are not Slaney's {tuple(ours.shape)}.")


_UNREAD = {"feature_extractor_type", "processor_class"}

_EXTRACTORS: Mapping[str, _Extractor] = {
    "ASTFeatureExtractor": _Extractor(
        KaldiFilterbankSpec,
        {
            "sampling_rate": 16_000,
            "num_mel_bins": 128,
            "max_length": 1024,
            "do_normalize": True,
            "mean": -4.2677393,
            "std": 4.5689974,
        },
        {"feature_size": 1, "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False},
        {},
        _read_ast,
        _write_ast,
    ),
    "WhisperFeatureExtractor": _Extractor(
        WhisperLogMelSpec,
        {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160, "feature_size": 80, "chunk_length": 30},
        {"dither": 0.0, "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False},
        {
            "n_samples": lambda config: config["chunk_length"] * config["sampling_rate"],
            "nb_max_frames": lambda config: config["chunk_length"] * config["sampling_rate"] // config["hop_length"],
        },
        _read_whisper,
        _write_whisper,
    ),
}
