"""What Hugging Face's tokenizer classes make of plain lists of pieces: pipelines of the ``tokenizers`` library.

A folder with a ``tokenizer.json`` needs none of this. Older ones have lists alone, and what is done around them is in
transformers' classes (version 5.23 is what these follow, and what the tests compare with).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmformer.errors import InputError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_LONGEST = 1000  # characters of a piece whose merges are looked for, one for each cut

Files = Mapping[str, bytes]
Settings = Mapping[str, Any]
"""tokenizer_config.json."""


def byte_level(files: Files, settings: Settings) -> Tokenizer:
    """GPT-2's, of vocab.json and merges.txt; Whisper's and RoBERTa's too."""
    tokenizer = Tokenizer(models.BPE(*_pieces_and_merges(files), fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def normalised_byte_level(files: Files, settings: Settings) -> Tokenizer:
    """GPT-NeoX's, of vocab.json and merges.txt; Mamba's too."""
    tokenizer = byte_level(files, settings)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def clip(files: Files, settings: Settings) -> Tokenizer:
    """CLIP's, of vocab.json and merges.txt, in transformers."""
    unknown = text_of(settings.get("unk_token")) or "<|endoftext|>"
    tokenizer = _clip(*_pieces_and_merges(files), unknown, ("<|startoftext|>", "<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    return tokenizer


def open_clip(merges: str, special: tuple[str, ...] = ()) -> Tokenizer:
    """CLIP's, of the text that ``bpe_simple_vocab_16e6.txt.gz`` holds, in open_clip and OpenAI's own code.

    Args:
        special: tokens besides the two that begin and end a text, which come last.
    """
    pairs = [tuple(line.split()) for line in merges.split("\n")[1 : 49152 - 256 - 2 + 1]]
    if not all(len(pair) == 2 for pair in pairs):
        raise InputError("CLIP's merges have a line that is not two pieces: the file is another one, or was damaged.")
    single = list(_byte_characters().values())
    pieces = [*single, *(character + "</w>" for character in single), *(a + b for a, b in pairs)]
    special = ("<start_of_text>", "<end_of_text>", *special)
    numbers = {piece: number for number, piece in enumerate([*pieces, *special])}
    return _clip(numbers, pairs, None, special, ignore_case=True)


def _clip(
    numbers: dict[str, int], merges: list[Any], unknown: str | None, special: tuple[str, ...], ignore_case: bool = False
) -> Tokenizer:
    model = models.BPE(numbers, merges, end_of_word_suffix="</w>", fuse_unk=False, unk_token=unknown)
    tokenizer = Tokenizer(model)
    spelt = "|".join(token.replace("|", r"\|") for token in special)
    # Case-insensitive classes of the reference's regex leave out a mark whose upper case is a letter: it is dropped.
    flags, dropped = ("i", r"\x{345}") if ignore_case else ("", "")
    words = rf"(?{flags}:{spelt}|'s|'t|'re|'ve|'m|'ll|'d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}{dropped}]+"
    split = pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not ignore_case)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_piece(files: Files, settings: Settings) -> Tokenizer:
    """BERT's, of vocab.txt."""
    lines = _text(files, "vocab.txt").split("\n")
    numbers = {line.rstrip(): number for number, line in enumerate(lines[: -1 if lines[-1] == "" else None])}
    unknown = text_of(settings.get("unk_token")) or "[UNK]"
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def unigram(files: Files, settings: Settings) -> Tokenizer:
    """T5's, of spiece.model, with the sentinels that the file leaves out (Raffel et al. 2020, §3.1.4)."""
    proto = _proto(files, "spiece.model")
    if proto.trainer_spec.unk_id != 2:
        raise InputError(f"spiece.model has its unknown piece at {proto.trainer_spec.unk_id}, but T5's is at 2.")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    number = int(settings.get("extra_ids", 100))
    pieces += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(number))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    if proto.normalizer_spec.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    spaces: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**spaces)]
    )
    tokenizer.decoder = decoders.Metaspace(**spaces)
    tokenizer.add_tokens(_controls(proto))
    tokenizer.add_tokens([AddedToken(f"<extra_id_{index}>", special=True) for index in range(number)])
    return tokenizer


def big_bird(files: Files, settings: Settings) -> Tokenizer:
    """BigBird's, of spiece.model."""
    proto = _proto(files, "spiece.model")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    unknown = text_of(settings.get("unk_token")) or "<unk>"
    number = pieces.index((unknown, 0.0)) if (unknown, 0.0) in pieces else 100
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=number, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(left=False, right=False), normalizers.Replace(Regex(r" {2,}"), "▁")]
    )
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    spaces: dict[str, Any] = {"replacement": "▁", "prepend_scheme": scheme, "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**spaces)
    tokenizer.decoder = decoders.Metaspace(**spaces)
    tokenizer.add_tokens(_controls(proto))
    return tokenizer


def byte_fallback(files: Files, settings: Settings) -> Tokenizer:
    """Llama's, of tokenizer.model: merges are those of its pieces that are two others, the lowest number first."""
    proto = _proto(files, "tokenizer.model")
    if proto.trainer_spec.model_type != 2 or not proto.trainer_spec.byte_fallback:
        raise InputError("tokenizer.model is no byte-pair encoding with byte fallback, as Llama's is.")
    numbers = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    model = models.BPE(numbers, _merges_of(numbers), fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    before = settings.get("add_prefix_space") is not False
    scheme = "never" if not before else "always" if settings.get("legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + ([decoders.Strip(content=" ", left=1)] if before else []))
    tokenizer.add_tokens(_controls(proto))
    return tokenizer


def text_of(token: Any) -> str | None:
    """A token as settings name it: its text, or a mapping that has it."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def added_token(token: Any, special: bool = True) -> AddedToken:
    """A token to find in texts, as settings name it."""
    if not isinstance(token, Mapping):
        return AddedToken(str(token), special=special, normalized=not special)
    known = ("lstrip", "rstrip", "single_word", "normalized")
    flags = {name: bool(token[name]) for name in known if name in token}
    return AddedToken(token["content"], special=bool(token.get("special", special)), **flags)


def _pieces_and_merges(files: Files) -> tuple[dict[str, int], list[tuple[str, str]]]:
    numbers = json.loads(_text(files, "vocab.json"))
    lines = [line.removesuffix("\r") for line in _text(files, "merges.txt").split("\n")]
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in merges):
        raise InputError("merges.txt has a line that is not two pieces.")
    return numbers, merges  # type: ignore[return-value]


def _merges_of(numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    found = []
    if max(map(len, numbers), default=0) > _LONGEST:
        raise InputError(f"The folder's vocabulary has a piece of more than {_LONGEST:,} characters.")
    for piece, rank in numbers.items():
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        found += [(rank, len(a), len(b), a, b) for a, b in cuts if a in numbers and b in numbers]
    return [(a, b) for *_, a, b in sorted(found, key=lambda merge: merge[:3])]


def _controls(proto: Any) -> list[AddedToken]:
    """Pieces that SentencePiece does not cut: control symbols, and those that its user defined."""
    return [AddedToken(p.piece, special=p.type == 3, normalized=False) for p in proto.pieces if p.type in (3, 4)]


def _proto(files: Files, name: str) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(files[name])
    except DecodeError as error:
        raise InputError(f"{name} is no SentencePiece model.") from error
    return proto


def _text(files: Files, name: str) -> str:
    if name not in files:
        raise InputError(f"The folder's vocabulary needs {name}, which is not there.")
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8.") from error


def _byte_characters() -> dict[int, str]:
    """A printable character for each byte (GPT-2, Radford et al. 2019, §2.2), in the order of CLIP's pieces."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
