"""A run with a decoder: it learns to write what the data say, alone or beside another objective, and comes back."""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import VOCABULARY, tiny_data, tiny_model, tiny_run, write_shards
from torch import Tensor

from mmformer.bundle import load_bundle
from mmformer.config import parse, read_yaml
from mmformer.data.caption import FieldCaptionSpec
from mmformer.data.inputs import TextInputSpec
from mmformer.data.loading import evaluation_loader, training_loader
from mmformer.errors import InputError
from mmformer.models.decoder import DecoderSpec
from mmformer.models.model import ModelSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.objectives.contrastive import ContrastiveSpec
from mmformer.parallel.clipping import clip_gradients
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.accumulate import accumulate
from mmformer.training.fit import fit
from mmformer.training.optimizers.adamw import AdamWSpec
from mmformer.training.run import CheckpointSpec, EvaluationSpec, RunSpec
from mmformer.types import Batch

NAMES = TextInputSpec("json", FieldCaptionSpec("names.en"))
SHORT = TextTokensSpec(VOCABULARY, context_length=10)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


def coca(shards: Path, parts: int = 1, **changes: Any) -> RunSpec:
    """Contrastive and captioning, as CoCa is trained."""
    run = tiny_run(shards, **changes)
    return dataclasses.replace(
        run,
        model=tiny_model(caption=True),
        objectives={"contrastive": ContrastiveSpec(), "captioning": CaptioningSpec(weight=2.0)},
        trainer=dataclasses.replace(run.trainer, accumulate_grad_batches=parts),
    )


def writer_alone(shards: Path, steps: int = 2) -> RunSpec:
    """A language model: no encoder, and data of texts alone."""
    made = tiny_model(caption=True)
    layer = dataclasses.replace(made.stacks["caption"].layer, cross=None)
    model = ModelSpec(
        {"caption": dataclasses.replace(made.stacks["caption"], layer=layer)},
        decoders={"caption": dataclasses.replace(made.decoders["caption"], reads={})},
    )
    return dataclasses.replace(
        tiny_run(shards, steps=steps),
        model=model,
        objectives={"captioning": CaptioningSpec()},
        data=tiny_data(shards, image=None, text=NAMES),
        evaluation=EvaluationSpec(),
    )


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "bundle" / "model.safetensors")


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def done(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Path]:
    run, output = coca(shards), tmp_path_factory.mktemp("runs") / "coca"
    fit(run, output)
    return run, output


def test_it_repeats_from_its_config_and_its_bundle_opens(done: tuple[RunSpec, Path]) -> None:
    run, output = done
    assert parse(RunSpec, read_yaml(output / "config.yaml"), "config.yaml") == run
    model, _ = load_bundle(output / "bundle")
    saved = weights(output)
    assert {name.split(".")[0] for name in saved} == {"stacks", "encoders", "decoders", "heads"}
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    data = dataclasses.replace(run.data, evaluation_batch_size=8)
    loader: Any = evaluation_loader(data, "test", model.spec.text_encoders())
    (batch,) = loader
    with torch.no_grad():
        assert math.isfinite(model(batch).losses["caption"].total)


def test_the_bundle_carries_its_decoders_words(done: tuple[RunSpec, Path]) -> None:
    """They are read from the bundle's own file, not from where they were when it was trained."""
    _, output = done
    model, _ = load_bundle(output / "bundle")
    for part in (*model.spec.encoders.values(), *model.spec.decoders.values()):
        if isinstance(part.tokenizer, TextTokensSpec):
            assert Path(part.tokenizer.vocabulary).parent == output / "bundle"


def test_both_losses_are_told_and_weighed(done: tuple[RunSpec, Path]) -> None:
    for row in rows(done[1]):
        contrastive, captioning = (
            float(row[f"train/{name}"]) for name in ("contrastive/image_text", "captioning/cross_entropy")
        )
        assert math.isclose(float(row["train/loss"]), contrastive + 2 * captioning, rel_tol=1e-5)
        assert 0 < captioning <= math.log(8192) + 0.1


def test_micro_batches_train_the_same(done: tuple[RunSpec, Path], shards: Path, tmp_path: Path) -> None:
    """Update after update; the weights are not compared, for Adam moves what has no gradient by its rounding."""
    fit(coca(shards, parts=4), tmp_path / "run")
    for one, other in zip(rows(tmp_path / "run"), rows(done[1]), strict=True):
        for name in ("loss", "contrastive/image_text", "captioning/cross_entropy", "gradient_norm"):
            assert math.isclose(float(one[f"train/{name}"]), float(other[f"train/{name}"]), rel_tol=1e-4), name


def test_a_text_that_begins_with_bos_is_read_and_written(shards: Path) -> None:
    """As CoCa's is: bos is read by the encoder, and not written; however a batch is cut."""
    run = coca(shards)
    text = run.model.encoders["text"]
    assert isinstance(text.tokenizer, TextTokensSpec)
    text = dataclasses.replace(text, tokenizer=dataclasses.replace(text.tokenizer, begin=True))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, encoders={**run.model.encoders, "text": text}))
    loader: Any = training_loader(run.data, run.model.text_encoders(), run.seed, 0, 1)
    (batch,) = loader
    assert batch.target is None and batch.text.begun
    model = run.model.build()
    objectives = {name: spec.build() for name, spec in run.objectives.items()}
    found = []
    for parts in (1, 4):
        model.initialise(run.seed)
        model.zero_grad()
        losses = accumulate(
            model, objectives, {"contrastive": 1.0, "captioning": 2.0}, batch, parts, lambda loss: loss.backward()
        )
        found.append((losses, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_training_is_the_plain_loop(shards: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(coca(shards), evaluation=EvaluationSpec())
    fit(run, tmp_path / "run")
    model = run.model.build()
    model.initialise(run.seed)
    optimizer = run.optimizer.build(model)
    batches: Any = training_loader(run.data, run.model.text_encoders(), run.seed, 0, 6)
    for step, batch in enumerate(batches):
        assert isinstance(batch, Batch)
        for group in optimizer.param_groups:
            group["lr"] = run.optimizer.lr * run.schedule.factor(step, 6)
        optimizer.zero_grad()
        objectives = {name: spec.build() for name, spec in run.objectives.items()}
        accumulate(model, objectives, {"contrastive": 1.0, "captioning": 2.0}, batch, 1, lambda loss: loss.backward())
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
    assert difference(weights(tmp_path / "run"), dict(model.state_dict())) == 0


def test_a_resumed_run_ends_in_the_same_bits(shards: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(coca(shards, steps=4, dropout=0.1), evaluation=EvaluationSpec())
    fit(run, tmp_path / "whole")
    short = dataclasses.replace(run, checkpoint=CheckpointSpec(every_steps=2, keep=5))
    fit(short, tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        if not path.name.endswith("2"):
            shutil.rmtree(path)
    fit(short, tmp_path / "cut", resume=True)
    assert difference(weights(tmp_path / "cut"), weights(tmp_path / "whole")) == 0


def test_it_learns_what_the_texts_say(shards: Path, tmp_path: Path) -> None:
    """48 names of one form, of 8 colours, 3 places and 2 sizes: what is sure is learned soon, without any picture."""
    run = dataclasses.replace(writer_alone(shards, steps=60), optimizer=AdamWSpec(lr=3e-2))
    assert run.model.encoders == {}
    fit(run, tmp_path / "run")
    losses = [float(row["train/captioning/cross_entropy"]) for row in rows(tmp_path / "run")]
    assert losses[0] > 8
    assert losses[-1] < 2
    assert not (tmp_path / "run" / "pictures").exists()


def test_it_may_write_another_text_than_encoders_read(shards: Path, tmp_path: Path) -> None:
    """Keywords are read, names are written, and each is cut by a tokenizer of its own."""
    model = tiny_model(caption=True)
    decoder = dataclasses.replace(model.decoders["caption"], tokenizer=SHORT)
    run = dataclasses.replace(
        coca(shards, steps=2),
        model=dataclasses.replace(model, decoders={"caption": decoder}),
        data=tiny_data(shards, target=NAMES),
    )
    batch: Batch = next(iter(evaluation_loader(run.data, "val", run.model.text_encoders())))  # type: ignore[assignment]
    assert batch.text is not None
    assert batch.target is not None
    vocabulary = SHORT.encoder().vocabulary
    written = vocabulary.decode(batch.target.ids[0, : batch.target.lengths[0] - 1].tolist())
    assert written.strip().endswith(("left", "middle", "right"))
    assert batch.target.ids.shape[1] <= 10
    fit(run, tmp_path / "run")
    assert {file.name for file in (tmp_path / "run" / "bundle").glob("*.model")}


# ------------------------------------------------------------------------------------------------- refusals


def with_decoder(run: RunSpec, **changes: Any) -> RunSpec:
    decoder = dataclasses.replace(run.model.decoders["caption"], **changes)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, decoders={"caption": decoder}))


def without_text_encoder(run: RunSpec) -> RunSpec:
    model = run.model
    return dataclasses.replace(
        run,
        model=ModelSpec(
            {name: stack for name, stack in model.stacks.items() if name != "text"},
            {"image": model.encoders["image"]},
            model.decoders,
        ),
        objectives={"captioning": CaptioningSpec()},
        evaluation=EvaluationSpec(),
    )


REFUSED: list[tuple[Any, str]] = [
    (
        lambda run: dataclasses.replace(run, model=tiny_model()),
        r"reads the decoder 'caption', but the model's decoders are none\.",
    ),
    (
        lambda run: dataclasses.replace(run, model=tiny_model(), objectives={"contrastive": ContrastiveSpec()},
                                        data=tiny_data(Path(run.data.source), target=NAMES)),
        r"data\.target is read, but no encoder or decoder of the model uses it: remove it\.",
    ),
    (
        lambda run: with_decoder(run, tokenizer=SHORT),
        r"model\.decoders\.caption writes the text that encoders read, but cuts it into other ids: .*context_length=10"
        r".* and .*context_length=16.*Give both the same tokenizer, or set data\.target\.",
    ),
    (
        lambda run: dataclasses.replace(without_text_encoder(run), data=tiny_data(Path(run.data.source), text=None)),
        r"The model reads text, but data\.text is absent: say how it is read\.",
    ),
    (
        lambda run: dataclasses.replace(
            without_text_encoder(run), data=tiny_data(Path(run.data.source), target=NAMES)
        ),
        r"data\.text is read, but no encoder or decoder of the model uses it: remove it\.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_what_does_not_fit_together_is_refused(change: Any, message: str, shards: Path) -> None:
    with pytest.raises(InputError, match=message):
        change(coca(shards))


def test_what_fits_together_is_not_refused(shards: Path) -> None:
    run = coca(shards)
    without_text_encoder(run)
    written = dataclasses.replace(without_text_encoder(run), data=tiny_data(shards, text=None, target=NAMES))
    assert list(written.model.text_encoders()) == ["text", "target"]
    both = with_decoder(dataclasses.replace(run, data=tiny_data(shards, target=NAMES)), tokenizer=SHORT)
    assert isinstance(both.model.decoders["caption"], DecoderSpec)
