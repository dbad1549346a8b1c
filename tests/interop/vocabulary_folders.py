"""Folders with small vocabularies of every kind, trained here: what models from elsewhere come with."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from vocabulary_texts import WRITTEN, captions

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [*captions()[:6000], *WRITTEN * 2]


def write(folder: Path, **files: Any) -> Path:
    """Files by name, "." written "__": text and bytes as they are, others as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def byte_level(*special: str, size: int = 900) -> Tokenizer:
    """GPT-2's kind."""
    return Tokenizer.from_str(_byte_level(special, size))


@functools.cache
def _byte_level(special: tuple[str, ...], size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    made: str = tokenizer.to_str()
    return made


def lists(tokenizer: Tokenizer) -> dict[str, Any]:
    """vocab.json and merges.txt."""
    model = json.loads(tokenizer.to_str())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocabulary = model["vocab"] | {
        token["content"]: token["id"] for token in json.loads(tokenizer.to_str())["added_tokens"]
    }
    return {"vocab__json": vocabulary, "merges__txt": "\n".join(["#version: 0.2", *pairs, ""])}


def gpt2(folder: Path) -> Path:
    return write(folder, config__json={"model_type": "gpt2", "n_positions": 64}, **lists(byte_level("<|endoftext|>")))


def own_tokens(folder: Path) -> Path:
    """GPT-2's lists, and tokens that only tokenizer_config.json has."""
    settings = {"image_token": "<image>", "additional_special_tokens": ["<video>", "<audio>"], "pad_token": "<pad>"}
    settings |= {"tokenizer_class": "GPT2Tokenizer"}
    made = lists(byte_level("<|endoftext|>"))
    return write(folder, config__json={"model_type": "gpt2"}, tokenizer_config__json=settings, **made)


def roberta(folder: Path) -> Path:
    made = lists(byte_level("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    special = {"mask_token": {"content": "<mask>", "lstrip": True, "normalized": False}}
    files = {"tokenizer_config__json": {"model_max_length": 62}, "special_tokens_map__json": special}
    return write(folder, config__json={"model_type": "roberta"}, **files, **made)


def neo_x(folder: Path) -> Path:
    return write(folder, config__json={"model_type": "mamba"}, **lists(byte_level("<|endoftext|>", "<|padding|>")))


def clip(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = lists(tokenizer)
    numbers = made["vocab__json"]
    for piece in [*(c + "</w>" for c in sorted(alphabet)), "<|startoftext|>", "<|endoftext|>"]:
        numbers.setdefault(piece, len(numbers))
    return write(folder, config__json={"model_type": "clip"}, tokenizer_config__json={"model_max_length": 77}, **made)


def bert(folder: Path, **settings: Any) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.get("do_lower_case", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=2500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    numbers = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    files = {"vocab__txt": "".join(f"{piece}\n" for piece, _ in numbers), "tokenizer_config__json": settings}
    return write(folder, config__json={"model_type": "bert", "max_position_embeddings": 48}, **files)


@functools.cache
def sentence_piece(kind: str, size: int = 1200, **options: Any) -> bytes:
    made = io.BytesIO()
    lines = [line for text in CORPUS for line in text.replace("\0", " ").splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=made, model_type=kind, vocab_size=size, minloglevel=2, **options
    )
    return made.getvalue()


def t5(folder: Path) -> Path:
    model = sentence_piece("unigram", 2400, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=0.98)
    return write(folder, config__json={"model_type": "t5", "decoder_start_token_id": 0}, spiece__model=model)


def siglip(folder: Path) -> Path:
    options = {"character_coverage": 0.98, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64}
    model = sentence_piece("unigram", 2600, **options)
    return write(folder, config__json={"model_type": "siglip"}, tokenizer_config__json=settings, spiece__model=model)


def big_bird(folder: Path) -> Path:
    options = {"character_coverage": 0.98, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    model = sentence_piece("bpe", 2500, control_symbols="[CLS],[SEP],[MASK]", **options)
    return write(folder, config__json={"model_type": "big_bird"}, spiece__model=model)


def llama(folder: Path, **settings: Any) -> Path:
    options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    model = sentence_piece("bpe", 2600, character_coverage=0.98, split_digits=True, **options)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **settings}
    return write(folder, config__json={"model_type": "llama"}, tokenizer_config__json=settings, tokenizer__model=model)


def llama3(folder: Path, named: str = "PreTrainedTokenizerFast") -> Path:
    """A tokenizer.json alone: a split of its own, tokens added behind, and bos before a text."""
    tokenizer = byte_level(size=1000)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    first = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)]
    )
    settings = {
        "tokenizer_class": named,
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "clean_up_tokenization_spaces": True,
        "model_max_length": 131072,
    }
    files = {"tokenizer__json": tokenizer.to_str(), "tokenizer_config__json": settings}
    generation = {"eos_token_id": [first + 1, first + 2]}
    return write(folder, config__json={"model_type": "llama"}, generation_config__json=generation, **files)


def whisper(folder: Path) -> Path:
    """GPT-2's lists, and many tokens behind them."""
    more = [
        "<|startoftranscript|>",
        "<|en|>",
        "<|zh|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|startofprev|>",
        "<|notimestamps|>",
    ]
    made = lists(byte_level("<|endoftext|>"))
    first = len(made["vocab__json"])
    stamps = [f"<|{number * 0.02:.2f}|>" for number in range(200)]
    decoder = {
        str(first + at): {"content": token, "special": not token[2].isdigit(), "normalized": False}
        for at, token in enumerate([*more, *stamps])
    }
    settings = {"tokenizer_class": "WhisperTokenizer", "added_tokens_decoder": decoder, "model_max_length": 1024}
    config = {"model_type": "whisper", "decoder_start_token_id": first, "suppress_tokens": [1, 2, 7]}
    return write(folder, config__json=config, tokenizer_config__json=settings, **made)


def marian(folder: Path, separate: bool = False) -> Path:
    source, target = (sentence_piece(kind, 2600, character_coverage=0.98) for kind in ("unigram", "bpe"))
    sides = []
    for model in (source, target):
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
        sides.append([processor.IdToPiece(at) for at in range(3, len(processor))])
    both = [["</s>", "<unk>", ">>de<<", *pieces, "<pad>"] for pieces in (sides if separate else [sides[0] + sides[1]])]
    numbers = [{piece: at for at, piece in enumerate(dict.fromkeys(pieces))} for pieces in both]
    files: dict[str, Any] = {"source__spm": source, "target__spm": target, "vocab__json": numbers[0]}
    pad = numbers[0]["<pad>"]
    if separate:
        files["target_vocab__json"] = numbers[1]
    settings = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate, "model_max_length": 512}
    config = {"model_type": "marian", "decoder_start_token_id": pad, "pad_token_id": pad, "bad_words_ids": [[pad]]}
    return write(folder, config__json=config, tokenizer_config__json=settings, **files)


def saved(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The same folder as transformers writes it: with a tokenizer.json."""

    def made(folder: Path) -> Path:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(make(folder / "lists")).save_pretrained(folder / "saved")
        config = (folder / "lists" / "config.json").read_text(encoding="utf-8")
        return write(folder / "saved", config__json=config)

    return made


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "gpt2": gpt2,
    "gpt2 saved": saved(gpt2),
    "own tokens": own_tokens,
    "roberta": roberta,
    "neo x": neo_x,
    "neo x saved": saved(neo_x),
    "clip": clip,
    "clip saved": saved(clip),
    "bert": bert,
    "bert cased": lambda folder: bert(folder, do_lower_case=False),
    "bert accents": lambda folder: bert(folder, strip_accents=False, tokenize_chinese_chars=False),
    "bert saved": saved(bert),
    "t5": t5,
    "t5 saved": saved(t5),
    "llama": llama,
    "llama saved": saved(llama),
    "llama3": llama3,
    "llama3 as llama": lambda folder: llama3(folder, "LlamaTokenizer"),
    "whisper": whisper,
    "whisper saved": saved(whisper),
    "marian": marian,
    "siglip": siglip,
    "big bird": big_bird,
    "big bird saved": saved(big_bird),
}
