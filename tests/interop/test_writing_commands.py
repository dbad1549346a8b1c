"""As a new user would, of what is written: a published folder, texts and pictures on disk, and the library's texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import vocabulary_folders
from published import (
    SEEN,
    TEXT,
    Command,
    check_embeddings,
    opened,
    published,
    refused,
    succeeding,
    write_pictures,
    write_sounds,
)

transformers = pytest.importorskip("transformers", reason="the reference")

PROMPTS = ["A man in a red hat", "Two dogs 🐕🐕 run", "The"]
LENGTH = 12


@pytest.fixture
def mmf(capsys: pytest.CaptureFixture[str]) -> Command:
    return succeeding(capsys)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Command:
    return refused(capsys)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


WAYS: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (["--beams", "3"], {"num_beams": 3}),
    (
        ["--repetition-penalty", "1.3", "--no-repeat-ngram", "2"],
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ),
]


def language_model(kind: str, folder: Path) -> tuple[Any, Any]:
    vocabulary_folders.FOLDERS[kind](folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        config = transformers.GPT2Config(**sizes, vocab_size=len(tokenizer), **special)
        reference = transformers.GPT2LMHeadModel(config)
    else:
        sizes = TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
        config = transformers.LlamaConfig(**sizes, vocab_size=len(tokenizer), **special)
        reference = transformers.LlamaForCausalLM(config)
    return published(folder, reference, tokenizer, size=3.0), tokenizer


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generate(kind: str, mmf: Command, tmp_path: Path) -> None:
    model, tokenizer = language_model(kind, tmp_path / "in")
    bundle = tmp_path / "bundle"
    mmf("import", f"hf:{tmp_path / 'in'}", bundle)
    for words, options in WAYS:
        theirs = []
        for prompt in PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            ids = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0, **options)[0]
            theirs.append(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        rows = mmf("generate", bundle, *PROMPTS, "--max-length", LENGTH, *words, "--json")
        assert [row["prompt"] for row in rows] == PROMPTS
        assert [row["text"] for row in rows] == theirs
    drawn = ["generate", bundle, *PROMPTS, "--max-length", LENGTH, "--top-k", 40, "--json"]
    assert mmf(*drawn, "--seed", 3) == mmf(*drawn, "--seed", 3) != mmf(*drawn, "--seed", 4)
    assert mmf(*drawn, "--batch-size", 1) == mmf(*drawn)


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning")
@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_translate(kind: str, mmf: Command, tmp_path: Path) -> None:
    folder, bundle = vocabulary_folders.FOLDERS[kind](tmp_path / "in"), tmp_path / "bundle"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        config = transformers.T5Config(**sizes, vocab_size=len(tokenizer) + 12, decoder_start_token_id=0)
        reference = transformers.T5ForConditionalGeneration(config)
    else:
        sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in LAYERS.items()}
        pad = {"pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
        more = {"d_model": 32, "max_position_embeddings": 64, "eos_token_id": 0, "forced_eos_token_id": None}
        config = transformers.MarianConfig(**sizes, **more, **pad, vocab_size=len(tokenizer))
        reference = transformers.MarianMTModel(config)
        reference.generation_config.bad_words_ids = [[tokenizer.pad_token_id]]
    model = published(folder, reference, tokenizer, size=3.0)
    mmf("import", f"hf:{folder}", bundle)
    prefix = "translate English to German: " if kind == "t5" else ""
    texts = [prefix + prompt for prompt in PROMPTS]
    for words, options in WAYS:
        theirs = []
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, **options)[0]
            theirs.append(tokenizer.decode(ids, skip_special_tokens=True))
        rows = mmf("translate", bundle, *texts, "--max-length", LENGTH, *words, "--json")
        assert [row["translation"] for row in rows] == theirs
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    lines = mmf("translate", bundle, "--from", tmp_path / "texts.txt", "--max-length", LENGTH, *words)
    assert lines.splitlines() == [row["translation"] for row in rows]


LAYERS = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}


def test_caption(pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    """BLIP, of pictures alone and after a prompt."""
    folder, bundle = vocabulary_folders.bert(tmp_path / "in"), tmp_path / "bundle"
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    seen = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    processor = transformers.BlipProcessor(seen, tokenizer)
    text = TEXT | {"encoder_hidden_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    ids = dict(zip(("pad", "bos", "sep"), tokenizer.convert_tokens_to_ids(["[PAD]", "[DEC]", "[SEP]"]), strict=True))
    text |= {f"{name}_token_id": index for name, index in ids.items()} | {"eos_token_id": ids["sep"]}
    config = transformers.BlipConfig(text_config=text, vision_config=SEEN)
    model = published(folder, transformers.BlipForConditionalGeneration(config), processor, size=2.0)
    mmf("import", f"hf:{folder}", bundle)
    for words, options in WAYS:
        pixels = processor(images=opened(pictures), return_tensors="pt")
        written = model.generate(**pixels, max_new_tokens=LENGTH, do_sample=False, **options)
        theirs = [processor.decode(row, skip_special_tokens=True) for row in written]
        rows = mmf("caption", bundle, *pictures, "--max-length", LENGTH, *words, "--json")
        assert [row["caption"] for row in rows] == theirs
        assert len(set(theirs)) > 1
    both = processor(images=opened(pictures), text=["a man in"] * 4, return_tensors="pt")
    written = model.generate(**both, max_new_tokens=LENGTH, do_sample=False)
    theirs = [processor.decode(row, skip_special_tokens=True) for row in written]
    rows = mmf("caption", bundle, *pictures, "--prompt", "a man in", "--max-length", LENGTH, "--json")
    assert [row["caption"] for row in rows] == theirs


def test_llava(pictures: list[str], mmf: Command, tmp_path: Path) -> None:
    """A question about each picture, which stands where the prompt has <image>."""
    folder, bundle = vocabulary_folders.llama(tmp_path / "in"), tmp_path / "bundle"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    small = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**small),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    text = TEXT | {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SEEN),
        text_config=transformers.LlamaConfig(**text),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    model = published(folder, transformers.LlavaForConditionalGeneration(config), processor, size=3.0)
    mmf("import", f"hf:{folder}", bundle)
    prompt = "USER: <image>\nWhat is in the picture? 🐕 ASSISTANT:"
    for words, options in WAYS:
        theirs = []
        for picture in opened(pictures):
            inputs = processor(images=picture, text=prompt, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, pad_token_id=0, **options)[0]
            theirs.append(processor.decode(ids, skip_special_tokens=True))
        rows = mmf("caption", bundle, *pictures, "--prompt", prompt, "--max-length", LENGTH, *words, "--json")
        assert [row["caption"] for row in rows] == theirs
        assert len(set(theirs)) > 1


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_texts_embed(kind: str, mmf: Command, tmp_path: Path) -> None:
    """By the pooler, and by the mean of T5's tokens."""
    folder, bundle = vocabulary_folders.FOLDERS[kind](tmp_path / "in"), tmp_path / "bundle"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if kind == "bert":
        config = transformers.BertConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=48)
        model = published(folder, transformers.BertModel(config), tokenizer, size=2.0)
    else:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        config = transformers.T5Config(**sizes, vocab_size=len(tokenizer))
        model = published(folder, transformers.T5EncoderModel(config), tokenizer, size=2.0)
    print(mmf("import", f"hf:{folder}", bundle))
    theirs = []
    for text in PROMPTS:
        with torch.no_grad():
            found = model(**tokenizer(text, return_tensors="pt"))
        theirs.append(found.pooler_output[0] if kind == "bert" else found.last_hidden_state[0].mean(0))
    (tmp_path / "texts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    check_embeddings(mmf("embed", bundle, "--texts-file", tmp_path / "texts.txt", "--json"), torch.stack(theirs))


def test_what_a_language_model_cannot_do(mmf: Command, told: Command, pictures: list[str], tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 99}
    ids = {"bos_token_id": 97, "eos_token_id": 98}
    published(tmp_path / "in", transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ids)))
    bundle = tmp_path / "bundle"
    assert "no vocabulary was found: the bundle takes ids only" in mmf("import", f"hf:{tmp_path / 'in'}", bundle)
    assert "takes ids only, not texts: it has no vocabulary" in told("generate", bundle, "The")
    assert "reads no text: it has no encoders. It can generate." in told("embed", bundle, "--texts", "a", "--json")
    assert "no classification head of its own for image: it can generate." in told("classify", bundle, *pictures)
    for command in ("caption", "transcribe"):
        files = pictures if command == "caption" else write_sounds(tmp_path)
        said = told(command, bundle, *files)
        assert f"{command} needs a decoder that reads" in said and "text reads nothing. It can generate." in said
    assert "needs a decoder that reads text" in told("translate", bundle, "The")


def test_what_a_classifier_cannot_do(mmf: Command, told: Command, pictures: list[str], tmp_path: Path) -> None:
    """Of pictures that nothing says how to prepare: they are taken as values alone."""
    published(tmp_path / "in", transformers.ViTForImageClassification(transformers.ViTConfig(**SEEN)))
    bundle = tmp_path / "bundle"
    assert "takes normalised values only" in mmf("import", f"hf:{tmp_path / 'in'}", bundle)
    said = told("classify", bundle, *pictures)
    assert "does not say what pictures are made into" in said and "has its preprocessor's config" in said
    labels = told("classify", bundle, *pictures, "--labels", "cat,dog")
    assert "reads no text, only image. It can classify, retrieve, embed." in labels
    assert "reads no text, only image" in told("embed", bundle, "--texts", "a", "--json")
    assert "It can classify, retrieve, embed." in told("caption", bundle, *pictures)
    assert "reads nothing (none was named)" in told("generate", bundle, "The")
