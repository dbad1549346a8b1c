"""Text to token ids and back without loss: a SentencePiece BPE model with byte fallback (no torch here).

Ids 0 to 4 are pad, unk, bos, eos and mask; named special tokens follow, then the 256 bytes, then the learned pieces.
Special tokens are SentencePiece's control symbols: no text encodes to them, not even text that spells one out.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from mmformer import resources
from mmformer.errors import InputError, foreign, nearest, nearest_file
from mmformer.spec import require
from mmformer.tokenizers.any_vocabulary import AnyVocabulary, surrogate
from mmformer.tokenizers.special import SpecialIds

RESERVED = ("pad", "unk", "bos", "eos", "mask")
"""The special tokens of every vocabulary; their ids are their places here."""

_BYTES = 256
_SPACE = "\u2581"  # what SentencePiece writes for a space; a text's own must go round it
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_:.-]*")
# SentencePiece drops longer lines, silently; its limit is 4,192 bytes, and a character takes up to four.
_LONGEST = 1000
_REMEDY = "Train one with: mmformer vocabulary train"
_PROBE = "  Spaces \n\t\x00 \u00e9 e\u0301 \u4f60\u597d <pad><mask><0x41> \U0001f469\u200d\U0001f680 "


class Vocabulary(AnyVocabulary):
    """A trained vocabulary. It pickles as the bytes of its model.

    The id ``pad`` fills up short rows, ``bos`` and ``eos`` begin and end a text, ``mask`` stands for a hidden token.

    Args:
        model: the bytes of a SentencePiece model that :class:`VocabularySpec` trained.
        origin: what to call it in an error, such as its path.

    Raises:
        InputError: the bytes are no such model.
    """

    def __init__(self, model: bytes, origin: str = "the vocabulary") -> None:
        self.model_bytes = bytes(model)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.model_bytes)
            ids = list(range(len(self._processor)))
            self._pieces: list[str] = self._processor.IdToPiece(ids) if ids else []
        except (RuntimeError, UnicodeDecodeError) as error:
            raise InputError(f"{origin} is not a SentencePiece model ({len(model)} bytes). {_REMEDY}") from error
        self._special = _check(self._processor, self._pieces, origin)
        self.pad, self.bos, self.eos, self.mask = (self._special[name] for name in ("pad", "bos", "eos", "mask"))
        self._bytes = [_piece_bytes(self._processor, index, piece) for index, piece in enumerate(self._pieces)]
        self._escaped_space = [self._pieces.index(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise InputError(
                f"{origin} changes the text that it encodes (it normalises, or adds or removes spaces), so text could "
                f"not be read back. {_REMEDY}"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a ``.model`` file.

        Raises:
            InputError: it cannot be read, or is not such a model.
        """
        try:
            with foreign(path):
                return _loaded(resources.find(path).read_bytes(), str(path))
        except OSError as error:
            near = nearest_file(path) if isinstance(error, FileNotFoundError) else ""
            raise InputError(f"The vocabulary {path} cannot be read: {error.strerror}.{near}") from error

    @classmethod
    def from_bytes(cls, model: bytes) -> Vocabulary:
        """From what :attr:`model_bytes` holds."""
        return cls(model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a ``.model`` file, whole or not at all, which any SentencePiece reads.

        Raises:
            InputError: it cannot be written there.
        """
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            partial.write_bytes(self.model_bytes)
            partial.replace(target)
        except OSError as error:
            raise InputError(f"The vocabulary cannot be written to {path}: {error.strerror}.") from error
        finally:
            partial.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (self.model_bytes,)

    @property
    def ids(self) -> SpecialIds:
        unwritten = tuple(index for index in self._special.values() if index != self.eos)
        return SpecialIds(self.pad, self.bos, (self.eos,), self.mask, unwritten=unwritten)

    @property
    def specials(self) -> dict[str, int]:
        """All special tokens, by name, in the order of their ids."""
        return dict(self._special)

    def special(self, name: str) -> int:
        """The id of a special token, by the name that it was trained with.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self._special:
            raise InputError(
                f"The vocabulary has no special token '{name}', only {', '.join(self._special)}."
                f"{nearest(name, self._special)} Special tokens are named when it is trained: --special {name}"
            )
        return self._special[name]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the pieces, their kinds and their ranks: equal where two vocabularies encode alike.

        The file's own hash also covers how it was trained, down to file names, and so differs between equal ones.
        """
        digest = hashlib.sha256()
        for index, piece in enumerate(self._pieces):
            kind = "special" if self._bytes[index] is None else "byte" if self._processor.IsByte(index) else "piece"
            digest.update(json.dumps([piece, kind, self._processor.GetScore(index)]).encode() + b"\n")
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text: no special token among them, and ``decode`` gives the text back.

        Raises:
            InputError: it is not a string, or not valid Unicode (it holds half a surrogate pair).
        """
        if not isinstance(text, str):
            raise InputError(f"A text to encode must be a string, not {type(text).__name__}: {text!r:.80}.")
        try:
            parts: list[list[int]] = [self._processor.EncodeAsIds(part) for part in text.split(_SPACE)]
        except RuntimeError as error:
            reason = surrogate(text) or f"SentencePiece cannot encode a text of {len(text)} characters."
            raise InputError(reason) from error
        ids = parts[0]
        for part in parts[1:]:
            ids += self._escaped_space + part
        return ids

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """How each id is written in the vocabulary, for people to read ("▁" is a space)."""
        return [self._pieces[index] for index in self._checked(ids)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids. Special tokens have none; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id lies outside the vocabulary.
        """
        parts = [self._bytes[index] for index in self._checked(ids)]
        return b"".join([part for part in parts if part is not None]).decode("utf-8", errors="replace")

    def _checked(self, ids: Iterable[int]) -> list[int]:
        numbers = [int(index) for index in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            place, wrong = next((at, index) for at, index in enumerate(numbers) if not 0 <= index < len(self))
            raise InputError(
                f"Id {wrong}, at place {place} of {len(numbers)}, is not in the vocabulary, whose ids are 0 to "
                f"{len(self) - 1}. The rows that pad an embedding table beyond it have no text: leave them out of what "
                "is predicted, and check that the ids come from this vocabulary."
            )
        return numbers


@dataclass(frozen=True)
class VocabularySpec:
    """How a vocabulary is trained.

    Attributes:
        size: pieces in all: 5 reserved, the named special tokens, 256 bytes, and as many learned ones as remain.
        special: names of further special tokens, such as ``("image", "en")``; see :meth:`Vocabulary.special`.
        character_coverage: the share of the texts' characters that get a piece of their own; the rarest others are
            spelt in bytes, three or so each, which costs length but loses nothing.
        longest_piece: characters in a piece, at most.
        split_digits: True gives every digit its own token, so that numbers are always cut in the same way.
        prefix_space: learn from lines with a space before them, for users that encode texts so: a word then has the
            same pieces at the beginning of a text as inside it.
    """

    size: int = 8192
    special: tuple[str, ...] = ()
    character_coverage: float = 0.9995
    longest_piece: int = 16
    split_digits: bool = True
    prefix_space: bool = True

    def __post_init__(self) -> None:
        names = (*RESERVED, *self.special)
        fixed = len(names) + _BYTES
        shape = "names that begin with a letter and go on with letters, digits, '_', '-', '.' or ':' (no brackets)"
        require(all(map(_NAME.fullmatch, self.special)), self, "special", shape)
        require(len(set(names)) == len(names), self, "special", f"without doubles, and without {', '.join(RESERVED)}")
        require(self.size > fixed, self, "size", f"above {fixed} ({len(names)} special tokens and {_BYTES} bytes)")
        require(0.98 <= self.character_coverage <= 1.0, self, "character_coverage", "from 0.98 to 1")
        require(1 <= self.longest_piece <= 512, self, "longest_piece", "from 1 to 512")

    def train(self, texts: Iterable[str]) -> Vocabulary:
        """Learns the pieces from texts, in one thread: the same texts in the same order give the same bytes.

        Lines are learned from one by one, long ones in parts, so no piece reaches across the end of a line. The texts
        are all held in memory: a few hundred MB are plenty.

        Raises:
            InputError: a text is no string; or there is too little text, or too many characters, for ``size``.
        """
        corpus, model = _Corpus(texts, " " if self.prefix_space else ""), io.BytesIO()
        train = sentencepiece.SentencePieceTrainer.Train
        try:
            train(sentence_iterator=iter(corpus), model_writer=model, **self._options())
        except RuntimeError as error:
            if corpus.failure is not None:
                raise corpus.failure from None
            raise InputError(self._explain(str(error), corpus)) from error
        return Vocabulary(model.getvalue(), "the trained vocabulary")

    def _options(self) -> dict[str, Any]:
        ends = ("pad", "unk", "bos", "eos")
        return {
            "model_type": "bpe",
            "vocab_size": self.size,
            **{f"{name}_id": RESERVED.index(name) for name in ends},
            **{f"{name}_piece": f"<{name}>" for name in ends},
            "control_symbols": [f"<{name}>" for name in ("mask", *self.special)],
            "character_coverage": self.character_coverage,
            "max_sentencepiece_length": self.longest_piece,
            "split_digits": self.split_digits,
            "byte_fallback": True,
            # SentencePiece's defaults change the text: NFKC, one space for many, a space before the first word.
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "allow_whitespace_only_pieces": True,
            # Otherwise texts without a single space would leave it to the bytes, which mean a text's own "▁".
            "required_chars": _SPACE,
            "num_threads": 1,
            "minloglevel": 2,
        }

    def _explain(self, reason: str, corpus: _Corpus) -> str:
        found = f"{corpus.texts:,} texts of {corpus.characters:,} characters"
        if not corpus.lines:
            return f"There is no text to train a vocabulary on: {found}, all of them empty."
        asked = f"A vocabulary of {self.size} pieces was asked for, but"
        if match := re.search(r"value <= (\d+)", reason):
            return f"{asked} {found} yield only {match[1]}: set the size to {match[1]} or less, or add text."
        if match := re.search(r"required_chars. \d+ vs (\d+)", reason):
            return (
                f"{asked} the characters of {found} alone need {match[1]}: set the size to that or more, or "
                f"character_coverage, now {self.character_coverage}, lower."
            )
        return f"No vocabulary of {self.size} pieces could be trained on {found}: {reason}"


class _Corpus:
    """Texts as the lines that SentencePiece takes, and what was seen of them."""

    def __init__(self, texts: Iterable[str], prefix: str) -> None:
        self._texts, self._prefix = texts, prefix
        self.texts = self.characters = self.lines = 0
        self.failure: BaseException | None = None
        """What the texts raised: SentencePiece would report it as an internal error of its own."""

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                if not isinstance(text, str):
                    raise InputError(f"Text {self.texts} to train on is no string but {type(text).__name__}.")
                self.texts += 1
                self.characters += len(text)
                for line in _lines(text):
                    self.lines += 1
                    yield self._prefix + line
        except BaseException as error:
            self.failure = error
            raise


def _lines(text: str) -> Iterator[str]:
    """A text's lines, without what SentencePiece cannot learn from, in parts of at most ``_LONGEST`` characters."""
    if not text.isascii():
        text = text.encode("utf-8", errors="replace").decode()
        # The first is SentencePiece's space; it skips whole lines for the second.
        text = text.replace(_SPACE, " ").replace("\u2585", " ")
    for line in text.replace("\0", " ").splitlines():
        start = 0
        while len(line) - start > _LONGEST:
            space = line.rfind(" ", start + 1, start + _LONGEST)
            end = space if space > 0 else start + _LONGEST
            yield line[start:end]
            start = end
        if line:
            yield line[start:]


@functools.lru_cache(maxsize=4)  # every part that reads texts asks for it, and it takes a quarter of a second
def _loaded(model: bytes, origin: str) -> Vocabulary:
    return Vocabulary(model, origin)


def _check(processor: sentencepiece.SentencePieceProcessor, pieces: Sequence[str], origin: str) -> dict[str, int]:
    """The special tokens by name, once it is sure that the model has the layout that ``VocabularySpec`` trains."""
    special = {piece[1:-1]: at for at, piece in enumerate(pieces) if processor.IsControl(at) or processor.IsUnknown(at)}
    found = [f"<{name}>" for name in RESERVED]
    placed = [special.get(name) for name in RESERVED] == list(range(len(RESERVED)))
    # A control symbol of one character would be found in plain text.
    if not placed or list(pieces[: len(RESERVED)]) != found or not all(map(_NAME.fullmatch, special)):
        raise InputError(
            f"{origin} begins with the pieces {', '.join(pieces[: len(RESERVED)])}, but must begin with the special "
            f"tokens {', '.join(found)}. {_REMEDY}"
        )
    if sum(map(processor.IsByte, range(len(pieces)))) != _BYTES:
        raise InputError(
            f"{origin} has no pieces for the 256 bytes (byte_fallback), so it cannot spell every text. {_REMEDY}"
        )
    return special


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, index: int, piece: str) -> bytes | None:
    if processor.IsControl(index) or processor.IsUnknown(index):
        return None
    if processor.IsByte(index):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()
