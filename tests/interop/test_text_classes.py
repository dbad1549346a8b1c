"""Classifiers of texts from a published folder, by the command and by Python, against the library's pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import vocabulary_folders
from published import NAMES, TEXT, Command, check_answers, published, refused, scores, succeeding

import mmformer
from mmformer.errors import InputError

transformers = pytest.importorskip("transformers", reason="the reference")

TEXTS = ["a red square, and a blue one", "the grinning face of a cat", "no", "two men in hats"]


def test_texts_have_the_classes_of_their_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = vocabulary_folders.bert(tmp_path / "bert")
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    config = transformers.BertConfig(
        **TEXT, vocab_size=size, max_position_embeddings=48, id2label=dict(enumerate(NAMES))
    )
    published(folder, transformers.BertForSequenceClassification(config), size=3.0)
    theirs = scores(transformers.pipeline("text-classification", model=str(folder), top_k=None)(TEXTS), NAMES)
    mmf: Command = succeeding(capsys)
    mmf("import", f"hf:{folder}", tmp_path / "bundle")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    for words in (["--text", *TEXTS], ["--texts-file", tmp_path / "texts.txt"]):
        answers = mmf("classify", tmp_path / "bundle", *words, "--json")
        assert [answer["text"] for answer in answers] == TEXTS
        check_answers(answers, theirs, NAMES)
    assert f" {answers[0]['label']} " in mmf("classify", tmp_path / "bundle", "--text", TEXTS[0], "--top", "1")
    model = mmformer.load(tmp_path / "bundle")
    assert list(model.classify(text=TEXTS[1])) == list(answers[1]["probabilities"])
    assert len(model.classify(text=TEXTS)) == len(TEXTS)
    with pytest.raises(InputError, match="Labels are compared with pictures or sounds: leave them out"):
        model.classify(text=TEXTS, labels=["cat", "dog"])  # type: ignore[call-overload]
    told = refused(capsys)("classify", tmp_path / "bundle", "picture.png", "--text", "a", "b")
    assert "classify takes pictures, sounds or texts: give one kind of them" in told
