"""Vocabularies in the folders of models from elsewhere: as a bundle has them, and unchanged back out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmformer.errors import InputError
from mmformer.interop import pipelines
from mmformer.interop.pipelines import Files, Settings, added_token, text_of
from mmformer.interop.tokenizer_classes import CLASSES, NAMED, SAID, SIGLIP, T5, TokenizerClass, kind_of
from mmformer.models.model import ModelSpec
from mmformer.tokenizers.archive import Options, Side, pack, unpack
from mmformer.tokenizers.cleaning import Cleaning
from mmformer.tokenizers.marian import processor_of
from mmformer.tokenizers.opening import from_content
from mmformer.tokenizers.published import read_tokenizer
from mmformer.tokenizers.special import SpecialIds
from mmformer.tokenizers.text import TextTokensSpec
from tokenizers import Tokenizer

_MERGES = 2**24  # bytes, unpacked; CLIP's have a fifth

LISTS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "source.spm")
"""Files of which each is the main part of some vocabulary."""

KEPT = (
    *LISTS,
    *("merges.txt", "target.spm", "target_vocab.json", "added_tokens.json", "special_tokens_map.json"),
    *("tokenizer_config.json", "normalizer.json", "chat_template.jinja", "chat_template.json"),
)
"""What a folder's vocabulary is in; it goes back out unchanged."""


class FoundVocabulary(NamedTuple):
    """A folder's vocabulary, and what a TextTokensSpec says of it."""

    content: bytes  # of the file to put into a bundle, whose name ends with .zip
    size: int  # ids, those that were added with them
    ids: SpecialIds
    begin: bool  # whether its library puts bos before a text
    end: bool  # whether it puts eos after it
    before: tuple[int, ...]  # all that it puts before a text: Whisper's are several
    after: tuple[int, ...]
    context_length: int | None  # as many tokens as its model reads; None: the folder does not say


def from_folder(folder: Path, clean: Cleaning | None = None, side: Side = "source") -> FoundVocabulary | None:
    """The vocabulary of a folder of transformers; None: it has none.

    A ``tokenizer.json`` is taken as it is. Without one, lists of pieces (vocab.json and merges.txt, vocab.txt,
    spiece.model, tokenizer.model) become what transformers 5 makes of them.

    Args:
        clean: what open_clip does to texts before it hands them to such a vocabulary; None: nothing.
        side: of Marian's, whose sides are cut by models of their own: ``source`` for what is read, ``target`` for what
            is written. Others have one for both.

    Raises:
        InputError: it has one that cannot be read exactly.
    """
    files = {name: (folder / name).read_bytes() for name in KEPT if (folder / name).is_file()}
    if not any(name in files for name in LISTS):
        return None
    config, settings = _json(folder, "config.json"), _json(folder, "tokenizer_config.json")
    kind = kind_of(config, settings)
    if kind == "Llama" and b'"ByteLevel"' in files.get("tokenizer.json", b""):
        kind = ""  # Llama 3's kind by the name of Llama 2's, as transformers sees it too
    if "source.spm" in files:
        return _marian(files, settings, config, side, clean)
    if kind == "Siglip":
        return _siglip(files, settings, config, clean)
    known = CLASSES.get(kind, TokenizerClass())
    if "tokenizer.json" in files:
        tokenizer = read_tokenizer(files["tokenizer.json"], str(folder / "tokenizer.json"))
    elif known.build is not None:
        tokenizer = known.build(files, settings)
    else:
        raise InputError(
            f"{folder} has {', '.join(name for name in LISTS if name in files)}, but no tokenizer.json, and of lists "
            f"alone mmformer reads those of {', '.join(CLASSES)}, not {kind or 'one that is not named'}. Have "
            f"transformers write a tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    names = _special_names(folder, settings, known.special)
    _add(tokenizer, folder, settings, names)
    if settings.get("split_special_tokens"):
        raise InputError(f"{folder} has split_special_tokens in tokenizer_config.json, which mmformer does not do.")
    before, after = _around(tokenizer, known, settings, names, folder)
    ids = _ids(tokenizer, names, before, after)
    tidy = bool(settings.get("clean_up_tokenization_spaces", False)) and type(tokenizer.model).__name__ != "BPE"
    options = Options(clean, tidy, known.word_end, kind == "Whisper")
    return _found(pack(options, files, tokenizer.to_str()), ids, before, after, _context(settings, config))


def from_open_clip(merges: bytes, clean: Cleaning = "lower", context_length: int = 77) -> FoundVocabulary:
    """The vocabulary of a model of open_clip that has no other: ``bpe_simple_vocab_16e6.txt.gz``, as it is.

    open_clip mends and lowers texts first, which transformers' CLIP does in its own way: the two differ on HTML
    entities, curly quotes, and text that was decoded wrongly.

    Args:
        merges: what the file holds.
        clean: ``tokenizer_kwargs.clean`` of the model's config.
    """
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)  # gzip's frame
    try:
        text = unpacking.decompress(merges, _MERGES).decode("utf-8")
    except (zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"CLIP's merges are no gzip of UTF-8: {error}.") from error
    if not unpacking.eof:
        raise InputError(f"CLIP's merges are cut short, or of more than {_MERGES:,} bytes: they are not CLIP's.")
    tokenizer = pipelines.open_clip(text)
    special = ("<start_of_text>", "<end_of_text>")
    first, last = map(tokenizer.get_vocab().__getitem__, special)
    options = Options(clean, word_end="</w>", special=special)
    content = pack(options, {"bpe_simple_vocab_16e6.txt.gz": merges}, tokenizer.to_str())
    return _found(content, SpecialIds(pad=0, bos=first, eos=(last,)), (first,), (last,), context_length)


def write_folder(vocabulary: bytes, folder: Path) -> list[str]:
    """Write the files that a vocabulary came in, byte for byte, into a folder; their names."""
    files = unpack(vocabulary).published
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def write_vocabularies(spec: ModelSpec, folder: Path) -> list[str]:
    """The same of every vocabulary of a model that came from elsewhere; its own kind has no such files.

    The longest text that they say, that of another model perhaps, or of this one before an edit, becomes the longest
    that the model reads, or writes if it reads none.
    """
    reads = [part.tokenizer for part in spec.encoders.values() if isinstance(part.tokenizer, TextTokensSpec)]
    known = [*reads, *(part.tokenizer for part in spec.decoders.values())]
    named = [tokenizer.vocabulary for tokenizer in known]
    paths = sorted({path for path in named if path is not None and Path(path).suffix in (".zip", ".json")})
    written = {name for path in paths for name in write_folder(Path(path).read_bytes(), folder)}
    if written:
        _cut_at(next(tokenizer.context_length for tokenizer in known if tokenizer.vocabulary in paths), folder)
    return sorted(written)


def _cut_at(longest: int, folder: Path) -> None:
    """Have a folder that says how long texts may be say that they may have so many tokens: longer ones are cut."""
    settings = _json(folder, "tokenizer_config.json")
    if _limit(settings.get("model_max_length")) not in (None, longest):
        text = json.dumps(settings | {"model_max_length": longest}, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(f"{text}\n", encoding="utf-8")


def _found(
    content: bytes, ids: SpecialIds, before: tuple[int, ...], after: tuple[int, ...], context: int | None
) -> FoundVocabulary:
    size = len(from_content(content, ids))
    return FoundVocabulary(content, size, ids, len(before) == 1, len(after) == 1, before, after, context)


def _special_names(folder: Path, settings: Settings, defaults: Mapping[str, str]) -> dict[str, Any]:
    """bos_token and the like, as the folder says them or else its class."""
    said = {name: settings[name] for name in NAMED if name in settings}
    if "added_tokens_decoder" not in settings:
        said |= {name: token for name, token in _json(folder, "special_tokens_map.json").items() if name in NAMED}
    names = {name: said.get(name, defaults.get(name)) for name in NAMED}
    return {name: token for name, token in names.items() if text_of(token) is not None}


def _add(tokenizer: Tokenizer, folder: Path, settings: Settings, names: Mapping[str, Any]) -> None:
    """Have the tokenizer find the tokens that the folder's other files add to its own."""
    waiting: list[tuple[int, Any]] = [
        (int(at), token) for at, token in settings.get("added_tokens_decoder", {}).items()
    ]
    spelt = {text_of(token) for token in names.values()}
    if not waiting:
        legacy = _json(folder, "added_tokens.json").items()
        waiting = [(at, {"content": token, "special": token in spelt}) for token, at in legacy]
    own = [
        token for name, token in settings.items() if name.endswith("_token") and name not in NAMED and text_of(token)
    ]
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    tokens = [token for _, token in sorted(waiting, key=lambda pair: pair[0])] + [*names.values(), *own]
    tokens += list(more.values()) if isinstance(more, Mapping) else list(more)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in tokens:
        if text_of(token) not in known:
            tokenizer.add_tokens([added_token(token)])
            known.add(text_of(token) or "")
    for at, token in waiting:
        if tokenizer.token_to_id(text_of(token) or "") != at:
            raise InputError(
                f"{folder}: its added tokens have {text_of(token)!r} at {at}, but there is room for it at "
                f"{tokenizer.token_to_id(text_of(token) or '')}: a token between is missing."
            )


def _around(
    tokenizer: Tokenizer, known: TokenizerClass, settings: Settings, names: Mapping[str, Any], folder: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the folder's class puts before and after a text: its own where it has some, or what tokenizer.json says.

    Raises:
        InputError: it is more than a TextTokensSpec can say.
    """
    told = known.before == SAID and tokenizer.post_processor is not None  # Whisper's languages and tasks
    if known.after and not told:
        before, after = ([text_of(names.get(name, name)) for name in part] for part in (known.before, known.after))
    elif tokenizer.post_processor is not None:
        made = next(filter(None, (tokenizer.encode(text) for text in ("a", "1", " ", "the"))), None)
        inside = [] if made is None else [at for at, owner in enumerate(made.sequence_ids) if owner is not None]
        if made is None or not inside:
            raise InputError(f"{folder}: its vocabulary has nothing for 'a', '1' or 'the'.")
        before, after = list(made.tokens[: inside[0]]), list(made.tokens[inside[-1] + 1 :])
    else:
        before = [text_of(names.get("bos_token"))] if settings.get("add_bos_token") else []
        after = [text_of(names.get("eos_token"))] if settings.get("add_eos_token") else []
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    if any(token not in numbers for token in (*before, *after)):
        raise InputError(f"{folder}: {(*before, *after)} stand around a text, but its vocabulary has not all of them.")
    if len(after) > 1 or (len(before) > 1 and before[0] != SAID[0]):
        raise InputError(f"{folder}: {(*before, *after)} stand around a text, but mmformer puts one on each side.")
    return tuple(numbers[token] for token in before if token), tuple(numbers[token] for token in after if token)


def _ids(tokenizer: Tokenizer, names: Mapping[str, Any], before: tuple[int, ...], after: tuple[int, ...]) -> SpecialIds:
    def named(*wanted: str) -> int | None:
        found = (tokenizer.token_to_id(text_of(names[name]) or "") for name in wanted if name in names)
        return next((number for number in found if number is not None), None)

    first = before[0] if len(before) == 1 else named("bos_token", "cls_token")
    last = after[0] if after else named("eos_token", "sep_token")
    ends = () if last is None else (last,)
    return SpecialIds(named("pad_token"), first, ends, named("mask_token"))


def _context(settings: Settings, config: Mapping[str, Any]) -> int | None:
    positions = ("max_position_embeddings", "n_positions", "max_target_positions")
    said = [settings.get("model_max_length"), *(config.get(name) for name in positions)]
    return next((limit for limit in map(_limit, said) if limit is not None), None)


def _limit(said: float | None) -> int | None:
    """The longest text, where what is said is not as much as stands for none."""
    return int(said) if said is not None and said < 10**9 else None


def _marian(
    files: Files,
    settings: Settings,
    config: Mapping[str, Any],
    side: Side,
    clean: Cleaning | None,
) -> FoundVocabulary:
    if settings.get("sp_model_kwargs"):
        raise InputError(
            f"tokenizer_config.json has sp_model_kwargs {settings['sp_model_kwargs']}, but they must be none."
        )
    names = {name: settings.get(name, default) for name, default in T5.items()}
    more = [*settings.get("added_tokens_decoder", {}).values(), *(settings.get("extra_special_tokens") or ())]
    tokens = [names["unk_token"], names["eos_token"], names["pad_token"], *more]
    stripped = [text_of(t) for t in tokens if isinstance(t, Mapping) and (t.get("lstrip") or t.get("rstrip"))]
    if stripped:
        raise InputError(
            f"tokenizer_config.json has {stripped[0]} take the spaces beside it, which mmformer does not do."
        )
    special = tuple(dict.fromkeys(filter(None, map(text_of, tokens))))
    tidy = bool(settings.get("clean_up_tokenization_spaces", False))
    content = pack(Options(clean, tidy, cutter=side, special=special), files)
    numbers = json.loads(files["vocab.json"])
    eos, pad = (numbers[text_of(names[name])] for name in ("eos_token", "pad_token"))
    return _found(content, SpecialIds(pad=pad, eos=(eos,)), (), (eos,), _context(settings, config))


def _siglip(
    files: Files,
    settings: Settings,
    config: Mapping[str, Any],
    clean: Cleaning | None,
) -> FoundVocabulary:
    """transformers reads spiece.model, whatever tokenizer.json says."""
    expected = {"do_lower_case": True, "sp_model_kwargs": {}, "legacy": True}
    other = {name: settings[name] for name, usual in expected.items() if settings.get(name, usual) != usual}
    if other:
        raise InputError(f"tokenizer_config.json has {other}, but SigLIP's are {expected}.")
    special = tuple(dict.fromkeys(text_of(settings.get(name)) or token for name, token in SIGLIP.items()))
    tidy = bool(settings.get("clean_up_tokenization_spaces", False))
    content = pack(Options(clean, tidy, cutter="siglip", special=special), files)
    processor = processor_of(files, "spiece.model", "the folder's vocabulary")
    ends = processor.PieceToId(text_of(settings.get("eos_token")) or SIGLIP["eos_token"])
    return _found(content, SpecialIds(pad=ends, eos=(ends,)), (), (ends,), _context(settings, config) or 64)


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A file of settings; {} where there is none."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / name} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{folder / name} must hold a mapping, but holds {type(found).__name__}.")
    return found
