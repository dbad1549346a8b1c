"""The vocabulary: any text there and back, special tokens out of reach of text, equal training gives equal bytes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmformer.errors import InputError
from mmformer.tokenizers.vocabulary import RESERVED, Vocabulary, VocabularySpec

CORPUS = [
    "a cat sat on the mat and the other cat ran",
    "the theatre, there: in 2024 and 1999 they sold 365 tickets",
    "eine Katze saß auf der Matte, grüne Bäume",
    "кошка сидела на коврике",
    "猫はマットの上に座っていた",
    "القطة جلست على السجادة",
    "def f(x):\n    return  x + 1\n",
] * 3
SPEC = VocabularySpec(size=500, special=("image", "en"), character_coverage=1.0)
VOCABULARY = SPEC.train(CORPUS)
ROOT = Path(__file__).parents[2]


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet=" \n\t\u2581\u2585\u2047\0a<>mask猫é\u0301\u200d🚀"))
@example("")
@example("   leading, trailing   ")
@example("\r\n\n\u2028\x85\x0b tab\t\0\x1f\x7f")
@example("\u2581 \u2581\u2581 is SentencePiece's space, \u2585 and \u2047 its other marks")
@example("👩🏽‍🚀🏳️‍🌈🇩🇪 é e\u0301 ﬁ ① \ufeff\ufffd\ufffe\uffff\U0010ffff")
@example("<pad><unk><bos><eos><mask><image></s><s><0x41><0xFF>")
def test_any_text_comes_back_exactly_and_never_holds_a_special_token(text: str) -> None:
    ids = VOCABULARY.encode(text)
    assert VOCABULARY.decode(ids) == text
    assert not set(ids) & set(VOCABULARY.specials.values())
    assert all(0 <= index < len(VOCABULARY) for index in ids)


def test_texts_come_back_with_the_default_vocabulary_too() -> None:
    vocabulary = Vocabulary.load(ROOT / "tokenizers" / "emoji-12.model")
    for text in (*CORPUS, "<mask>\u2581 x  \n", "한국어 हिन्दी português"):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert len(vocabulary) == vocabulary.padded_size()


def test_the_layout_of_ids() -> None:
    assert (VOCABULARY.pad, VOCABULARY.bos, VOCABULARY.eos, VOCABULARY.mask) == (0, 2, 3, 4)
    assert VOCABULARY.specials == {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "mask": 4, "image": 5, "en": 6}
    assert tuple(VOCABULARY.specials)[:5] == RESERVED
    assert VOCABULARY.special("en") == 6
    assert len(VOCABULARY) == 500
    assert VOCABULARY.padded_size() == 512
    assert VOCABULARY.padded_size(100) == 500
    assert VOCABULARY.pieces(VOCABULARY.encode(" the")) == ["▁the"]
    assert VOCABULARY.pieces(range(5)) == ["<pad>", "<unk>", "<bos>", "<eos>", "<mask>"]


def test_what_was_learned_is_shorter_and_digits_stand_alone() -> None:
    assert len(VOCABULARY.encode(" the cat sat on the mat")) <= 6
    plain = VocabularySpec(size=500, prefix_space=False).train(CORPUS)
    assert len(plain.encode("the cat sat on the mat")) <= 6 < len(VOCABULARY.encode("the cat sat on the mat"))
    assert VOCABULARY.pieces(VOCABULARY.encode("2024")) == ["2", "0", "2", "4"]
    joined = VocabularySpec(size=500, split_digits=False).train(CORPUS)
    assert len(joined.encode(" 1999")) < 5
    assert (
        max(len(piece) for piece in VocabularySpec(size=420, longest_piece=3).train(CORPUS).pieces(range(261, 420)))
        <= 3
    )


def test_rare_characters_are_spelt_in_bytes_below_full_coverage() -> None:
    rare = VocabularySpec(size=400, character_coverage=0.98).train([*CORPUS, "鯨"])
    assert len(rare.encode("鯨")) == 3
    assert rare.decode(rare.encode("鯨")) == "鯨"


def test_decoding_drops_special_tokens_and_repairs_broken_bytes() -> None:
    ids = VOCABULARY.encode("a猫\U0001f680")
    assert VOCABULARY.decode([2, 1, *ids[:1], 4, 6, *ids[1:], 3, 0, 0]) == "a猫\U0001f680"
    assert VOCABULARY.decode(ids[:-1]) == "a猫\ufffd"
    assert VOCABULARY.decode([]) == ""


@pytest.mark.parametrize(("ids", "message"), [([2, 500], "Id 500, at place 1 of 2"), ([-1], "Id -1, at place 0 of 1")])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(
        InputError, match=f"{message}, is not in the vocabulary, whose ids are 0 to 499.*pad an embedding"
    ):
        VOCABULARY.decode(ids)


@pytest.mark.parametrize(("text", "message"), [("ab\ud83d", r"character 2 is '\\ud83d', half"), (None, "not NoneType")])
def test_what_is_no_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VOCABULARY.encode(text)


def test_encode_many_equals_encode() -> None:
    assert VOCABULARY.encode_many(CORPUS) == [VOCABULARY.encode(text) for text in CORPUS]


def test_files_pickles_and_bytes_hold_the_same_vocabulary(tmp_path: Path) -> None:
    VOCABULARY.save(tmp_path / "v.model")
    assert [path.name for path in tmp_path.iterdir()] == ["v.model"]
    for other in (
        Vocabulary.load(tmp_path / "v.model"),
        Vocabulary.from_bytes(VOCABULARY.model_bytes),
        pickle.loads(pickle.dumps(VOCABULARY)),
    ):
        assert other.model_bytes == VOCABULARY.model_bytes
        assert other.fingerprint == VOCABULARY.fingerprint
        assert other.encode("the cat\u2581") == VOCABULARY.encode("the cat\u2581")


def test_training_is_deterministic_and_the_fingerprint_is_of_what_it_encodes() -> None:
    again = SPEC.train(iter(CORPUS))
    assert again.model_bytes == VOCABULARY.model_bytes
    renamed = VocabularySpec(size=500, special=("image", "de"), character_coverage=1.0).train(CORPUS)
    other = SPEC.train([*CORPUS, "zebra zebra zebra"])
    assert len({VOCABULARY.fingerprint, renamed.fingerprint, other.fingerprint}) == 3
    # The file also records how it was trained; that changes its hash, not the fingerprint.
    same = VocabularySpec(size=500, special=("image", "en"), character_coverage=0.99999).train(CORPUS)
    assert same.model_bytes != VOCABULARY.model_bytes
    assert same.fingerprint == VOCABULARY.fingerprint


def test_golden_ids_never_change() -> None:
    plain = VocabularySpec(size=500, special=("image", "en"), character_coverage=1.0, prefix_space=False).train(CORPUS)
    assert plain.fingerprint.startswith("9ae484e832e85003")
    assert plain.encode("the cat <mask>\n猫") == [265, 279, 424, 67, 394, 432, 467, 69, 17, 499]
    assert VOCABULARY.fingerprint.startswith("09fa33c54131fa6d")
    assert VOCABULARY.pieces(VOCABULARY.encode(" the cat")) == ["▁the", "▁cat"]


def test_long_lines_and_odd_characters_are_learned_from_not_dropped() -> None:
    long = " ".join(["xylophone"] * 3000) + "\u2585\u2581\0"
    learned = VocabularySpec(size=279).train([long])
    assert "▁xylophone" in learned.pieces(range(len(learned)))
    unbroken = VocabularySpec(size=270).train(["wq" * 100_000])  # and no space in it, which yet needs its piece
    assert "wqwqwqwq" in unbroken.pieces(range(len(unbroken)))
    assert unbroken.decode(unbroken.encode(" w \u2581 ")) == " w \u2581 "
    lines = VocabularySpec(size=266).train(["ab\nab\nab\n\ud800 "] * 50)
    assert not any("\n" in piece for piece in lines.pieces(range(len(lines))))


def test_text_that_spells_out_special_tokens_may_be_trained_on() -> None:
    vocabulary = VocabularySpec(size=300).train(["<mask> <0x41> <pad>"] * 50 + ["some other words here"])
    assert len(set(vocabulary.pieces(range(300)))) == 300
    for text in ("<mask>", " <mask> <0x41> <pad>"):
        assert vocabulary.decode(vocabulary.encode(text)) == text
        assert vocabulary.mask not in vocabulary.encode(text)


def test_too_little_text_names_the_largest_size_and_that_one_works() -> None:
    with pytest.raises(
        InputError, match=r"900 pieces was asked for, but 2 texts of 19 characters yield only (\d+)"
    ) as caught:
        VocabularySpec(size=900).train(["hello there", "hello it"])
    largest = int(str(caught.value).split("only ")[1].split(":")[0])
    assert len(VocabularySpec(size=largest).train(["hello there", "hello it"])) == largest


def test_too_many_characters_name_the_fix() -> None:
    letters = ["".join(map(chr, range(0x4E00, 0x4E00 + 500)))]
    with pytest.raises(InputError, match=r"300 pieces.*characters of 1 texts of 500 characters alone need 76\d"):
        VocabularySpec(size=300, character_coverage=1.0).train(letters)


@pytest.mark.parametrize("texts", [[], [""], ["\n", ""]])
def test_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text to train a vocabulary on"):
        VocabularySpec(size=300).train(texts)


def test_errors_of_the_texts_come_through_unchanged() -> None:
    def broken() -> Iterator[str]:
        yield "abc"
        raise KeyError("shard 7")

    with pytest.raises(KeyError, match="shard 7"):
        VocabularySpec(size=300).train(broken())
    with pytest.raises(InputError, match="Text 1 to train on is no string but int"):
        VocabularySpec(size=300).train(["abc", 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 261}, r"size must be above 261 \(5 special tokens and 256 bytes\), but is 261"),
        ({"size": 262, "special": ("a",)}, "above 262"),
        ({"special": ("<image>",)}, r"special must be names that begin with a letter.*<image>"),
        ({"special": ("0x41",)}, "begin with a letter"),
        ({"special": ("mask",)}, "without doubles, and without pad, unk, bos, eos, mask"),
        ({"special": ("a", "b", "a")}, "without doubles"),
        ({"character_coverage": 0.9}, "character_coverage must be from 0.98 to 1, but is 0.9"),
        ({"longest_piece": 0}, "longest_piece must be from 1"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VocabularySpec(**options)  # type: ignore[arg-type]


def test_an_unknown_special_token_shows_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no special token 'imag', only pad, .*image, en\. Did you mean 'image'"):
        VOCABULARY.special("imag")
    with pytest.raises(InputError, match="multiple of 0"):
        VOCABULARY.padded_size(0)


def foreign(**options: object) -> bytes:
    import io

    model = io.BytesIO()
    layout = {f"{name}_id": index for index, name in enumerate(("pad", "unk", "bos", "eos"))}
    names = {f"{name}_piece": f"<{name}>" for name in ("pad", "unk", "bos", "eos")}
    settings = {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "control_symbols": ["<mask>"]}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS[:3]),
        model_writer=model,
        minloglevel=2,
        **{**settings, **layout, **names, **options},
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "changes the text that it encodes"),
        ({"byte_fallback": False, "vocab_size": 60}, "no pieces for the 256 bytes"),
        ({"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2}, "begins with the pieces <unk>, <bos>, <eos>, <mask>"),
        ({"control_symbols": [], "user_defined_symbols": ["<mask>"]}, "must begin with the special tokens"),
        ({"control_symbols": ["<mask>", "a"]}, "must begin with the special tokens"),
    ],
)
def test_models_that_would_break_the_promises_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^the vocabulary .*{message}"):
        Vocabulary.from_bytes(foreign(**options))


def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.model cannot be read: No such file"):
        Vocabulary.load(tmp_path / "nowhere.model")
    for content in (b"", b"not a model", VOCABULARY.model_bytes[:-7], VOCABULARY.model_bytes[:3000]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.model is not a SentencePiece model"):
            Vocabulary.load(tmp_path / "bad.model")
    with pytest.raises(InputError, match=r"cannot be written to .*No such file or directory"):
        VOCABULARY.save(tmp_path / "no folder" / "v.model")


def test_it_does_not_import_torch() -> None:
    code = "import sys, mmformer.tokenizers.vocabulary, mmformer.cli.vocabulary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
