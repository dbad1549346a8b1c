"""Four processes on meshes of two dimensions, and other models over two and four: they train what one trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launched import assert_alike, everything, fit, rewound, rows
from safetensors.torch import load_file
from test_faults import faulty
from tiny import VOCABULARY, tiny_data, write_shards

from mmformer.config import to_yaml
from mmformer.data.caption import FieldCaptionSpec
from mmformer.data.inputs import TextInputSpec
from mmformer.evaluation.perplexity import PerplexitySpec
from mmformer.models.decoder import DecoderSpec
from mmformer.models.encoder import EncoderSpec
from mmformer.models.model import ModelSpec
from mmformer.nn.attention import AttentionSpec
from mmformer.nn.bias import RelativeBucketPositionSpec
from mmformer.nn.feedforward import FeedForwardSpec, GELUFeedForwardSpec, GLUFeedForwardSpec, SwiGLUFeedForwardSpec
from mmformer.nn.layer import LayerSpec
from mmformer.nn.moe import MixtureOfExpertsSpec
from mmformer.nn.norm import RMSNormSpec
from mmformer.nn.rotary import RotaryPositionSpec
from mmformer.nn.stack import StackSpec
from mmformer.objectives.captioning import CaptioningSpec
from mmformer.tokenizers.text import TextTokensSpec
from mmformer.training.average import EMASpec
from mmformer.training.divergence import DivergenceSpec
from mmformer.training.run import EvaluationSpec, RunSpec

WORDS = TextTokensSpec(VOCABULARY, context_length=16)
NAMES = TextInputSpec("json", FieldCaptionSpec("names.en"))

pytestmark = pytest.mark.slow


def writing(shards: Path, model: ModelSpec, **data: TextInputSpec) -> RunSpec:
    """A run whose decoder ``words`` learns to write, with averages, clipping and evaluation."""
    base = everything(shards)
    return dataclasses.replace(
        base,
        model=model,
        objectives={"write": CaptioningSpec(decoder="words")},
        data=dataclasses.replace(tiny_data(shards), image=None, **data),
        ema=EMASpec(0.9),
        evaluation=EvaluationSpec({"perplexity": PerplexitySpec("words")}, every_steps=3),
    )


def language_model(shards: Path, feedforward: FeedForwardSpec | None = None) -> RunSpec:
    """As Llama's: grouped queries, normalised, rotated, with a gated feed-forward, all without biases."""
    gated = feedforward or SwiGLUFeedForwardSpec()
    attention = AttentionSpec(4, key_value_heads=2, qk_norm=True, bias=False)
    stack = StackSpec(16, 2, LayerSpec(attention, gated, norm=RMSNormSpec()), RotaryPositionSpec())
    decoder = DecoderSpec(WORDS, "words", {}, chunk=7)
    return writing(shards, ModelSpec({"words": stack}, {}, {"words": decoder}, {}), text=NAMES)


def experts(shards: Path) -> RunSpec:
    """A language model with experts: they are computed in whole beside heads that are shared out."""
    return language_model(shards, MixtureOfExpertsSpec(3, GELUFeedForwardSpec(ratio=1.0)))


def translator(shards: Path) -> RunSpec:
    """As T5's: an encoder and a decoder with a bias for each head and bucket, gated, and one table of tokens."""
    layer = LayerSpec(AttentionSpec(4, scale=1.0, bias=False), GLUFeedForwardSpec(), norm=RMSNormSpec())
    # Two processes have three hidden units each, and two that shard those have two and one of them.
    narrow = GELUFeedForwardSpec(hidden_width=6)
    crossed = dataclasses.replace(layer, cross=AttentionSpec(4, key_value_heads=2, bias=False), feedforward=narrow)
    stacks = {
        "read": StackSpec(16, 2, layer, RelativeBucketPositionSpec()),
        "write": StackSpec(16, 2, crossed, RelativeBucketPositionSpec(bidirectional=False)),
    }
    encoders = {"text": EncoderSpec(WORDS, "read")}
    decoders = {"words": DecoderSpec(WORDS, "write", {"text": "cross"}, chunk=7, shares="text")}
    words = TextInputSpec("json", FieldCaptionSpec("colour"))
    return writing(shards, ModelSpec(stacks, encoders, decoders, {}), text=NAMES, target=words)


def written(run: RunSpec, folder: Path) -> Path:
    """A run's file, which as many as four may read by lanes of their own."""
    run = dataclasses.replace(
        run, data=dataclasses.replace(run.data, order=dataclasses.replace(run.data.order, lanes=4))
    )
    file = folder / "run.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    return written(everything(write_shards(folder / "shards")), folder)


@pytest.fixture(scope="module")
def one(file: Path) -> Path:
    """The run in one process."""
    fit(file, file.parent / "one")
    return file.parent / "one"


@pytest.mark.parametrize(("outer", "inner"), [("shard", "tensor"), ("data", "shard"), ("data", "tensor")])
def test_four_processes_train_what_one_trains(outer: str, inner: str, file: Path, one: Path, tmp_path: Path) -> None:
    fit(file, tmp_path / "four", f"--parallel.{outer}", "2", f"--parallel.{inner}", "2")
    assert_alike(one, tmp_path / "four")


def test_they_do_in_micro_batches_that_compute_their_activations_again(file: Path, one: Path, tmp_path: Path) -> None:
    words = ("--parallel.activation_checkpointing.keep", "products", "--trainer.accumulate_grad_batches", "2")
    fit(file, tmp_path / "four", "--parallel.shard", "2", "--parallel.tensor", "2", *words)
    assert_alike(one, tmp_path / "four")


@pytest.mark.parametrize("make", [language_model, translator, experts])
def test_other_models_do(make: Callable[[Path], RunSpec], tmp_path: Path) -> None:
    file = written(make(write_shards(tmp_path / "shards")), tmp_path)
    fit(file, tmp_path / "one")
    for name, words in {
        "data": ("--parallel.data", "2"),
        "tensor": ("--parallel.tensor", "2"),
        "both": ("--parallel.shard", "2", "--parallel.tensor", "2"),
    }.items():
        fit(file, tmp_path / name, *words)
        assert_alike(tmp_path / "one", tmp_path / name)
        assert rows(tmp_path / name)[-1]["validation/perplexity/perplexity"] > 1


@pytest.mark.parametrize("words", [("shard", "2"), ("data", "2"), ("tensor", "2")])
def test_half_the_precision_is_half_the_precision_of_one_process(
    words: tuple[str, str], file: Path, one: Path, tmp_path: Path
) -> None:
    """Products are rounded, to 8 bits; parameters, gradients' sums and averages are not.

    In one process that moves the norm of the first gradient by 1 % already.
    """
    half = ("--trainer.precision", "bf16-mixed")
    fit(file, tmp_path / "one", *half)
    fit(file, tmp_path / "two", *half, f"--parallel.{words[0]}", words[1])
    exact, single, double = (rows(run)[0]["train/loss"] for run in (one, tmp_path / "one", tmp_path / "two"))
    assert single != exact, "it is rounded"
    assert double == pytest.approx(single, rel=2**-8)
    norms = [rows(tmp_path / name)[0]["train/gradient_norm"] for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=2**-5)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=0.02), a["step"]


def test_a_run_goes_on_in_any_layout(file: Path, one: Path, tmp_path: Path) -> None:
    """One process, two that shard, two that compute together, four that do both, and one again, an update each."""
    words = ("--checkpoint.every_steps", "1", "--checkpoint.keep", "9")
    layouts = [(), ("--parallel.shard", "2"), ("--parallel.tensor", "2")]
    layouts += [("--parallel.shard", "2", "--parallel.tensor", "2"), ()]
    before = tmp_path / "0"
    fit(file, before, *words)
    for step, layout in enumerate(layouts[1:], start=1):
        now = rewound(before, step, tmp_path / str(step))
        fit(file, now, *words, *layout, "--resume")
        assert_alike(one, now)
        before = now


def in_micro_batches(run: RunSpec) -> RunSpec:
    trainer = dataclasses.replace(run.trainer, accumulate_grad_batches=2)
    return dataclasses.replace(run, trainer=trainer, logging=dataclasses.replace(run.logging, norms=True))


def test_stages_train_what_one_process_trains_and_go_on_in_any_layout(tmp_path: Path) -> None:
    """Two stages, each of them twice, replicated or sharded; then an update in each layout after the other."""
    file = written(in_micro_batches(language_model(write_shards(tmp_path / "shards"))), tmp_path)
    words = ("--checkpoint.every_steps", "1", "--checkpoint.keep", "9")
    staged = ("--parallel.pipeline", "2")
    fit(file, tmp_path / "one", *words)
    for other in ("shard", "data"):
        fit(file, tmp_path / other, *words, *staged, f"--parallel.{other}", "2")
        assert_alike(tmp_path / "one", tmp_path / other)
    layouts = [(), staged, ("--parallel.shard", "2"), (*staged, "--parallel.data", "2"), ()]
    before = tmp_path / "shard"
    for step, layout in enumerate(layouts, start=1):
        before = rewound(before, step, tmp_path / str(step))
        fit(file, before, *words, *layout, "--resume")
        assert_alike(tmp_path / "one", before)


def test_stages_roll_back_together(tmp_path: Path) -> None:
    """From a loss that is no number in the last of them, to the checkpoint before it."""
    run = in_micro_batches(language_model(write_shards(tmp_path / "shards")))
    run = dataclasses.replace(
        run, divergence=DivergenceSpec("roll_back"), checkpoint=dataclasses.replace(run.checkpoint, every_steps=2)
    )
    code, said, _ = faulty(run, tmp_path, "nan:1:4", "--parallel.pipeline", "2", "--parallel.shard", "1")
    assert code == 0, said
    assert said.count("the run went back to the weights after update 2") == 1
    assert all(row["train/loss"] < 10 for row in rows(tmp_path / "run"))


def test_stages_that_drop_out_go_on_exactly(tmp_path: Path) -> None:
    run = language_model(write_shards(tmp_path / "shards"))
    dropping = dataclasses.replace(run.model.stacks["words"], input_dropout=0.2, drop_path=0.5)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, stacks={"words": dropping}))
    file = written(in_micro_batches(run), tmp_path)
    words = ("--checkpoint.every_steps", "2", "--parallel.pipeline", "2")
    fit(file, tmp_path / "whole", *words, "--checkpoint.keep", "9")
    again = rewound(tmp_path / "whole", 2, tmp_path / "again")
    fit(file, again, *words, "--resume")
    assert (again / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    one, other = (load_file(folder / "bundle" / "model.safetensors") for folder in (again, tmp_path / "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
