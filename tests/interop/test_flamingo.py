"""Flamingo: the named system, made small, against an independent reference of the paper's equations."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from flamingo_reference import Flamingo, as_reference
from parity import GRADIENT, close, randomise
from torch import Tensor

from mmformer.config import parse, read_yaml
from mmformer.errors import InputError
from mmformer.generation.decoding import Decoding
from mmformer.generation.sampling import GreedySpec
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model, ModelSpec
from mmformer.types import Batch, Text

YAML = Path(__file__).parents[2] / "configs/models/flamingo.yaml"
HERE, EOS = 48, 49
SIZES = {
    **{"eye": 24, "eye_depth": 2, "eye_heads": 3, "eye_hidden": 40, "grid": 3, "patch": 4},
    **{"latents": 5, "perceiver_depth": 2, "perceiver_hidden": 32, "cross_heads": 2, "head_width": 8},
    **{"width": 32, "depth": 3, "heads": 4, "hidden": 56, "vocabulary": 50, "placeholder": HERE},
}
RANDOM = torch.Generator().manual_seed(1)
PICTURES = torch.randn(3, 3, 3, 12, 12, generator=RANDOM)
ROWS = [
    [0, 7, HERE, 9, 10, 11, HERE, 12, 13, HERE, 14],  # words before the first picture, then three
    [0, HERE, HERE, 20, 21, 22, 23],  # the first is never read but where it stands
    [0, 30, 31, 32, 33, 34, 35, 36, 37],  # none
]
LENGTH = max(map(len, ROWS))


def small() -> ModelSpec:
    """The file's system, at other sizes."""
    said: dict[str, Any] = read_yaml(YAML)
    image, text = said["stacks"]["image"], said["stacks"]["text"]
    image |= {"width": SIZES["eye"], "depth": SIZES["eye_depth"]}
    image["layer"]["mixer"]["init_args"]["heads"] = SIZES["eye_heads"]
    image["layer"]["feedforward"]["init_args"]["hidden_width"] = SIZES["eye_hidden"]
    image["position"]["init_args"]["sizes"] = [SIZES["grid"]] * 2
    text |= {"width": SIZES["width"], "depth": 2 * SIZES["depth"], "memory_width": SIZES["eye"]}
    cross = {"heads": SIZES["cross_heads"], "head_width": SIZES["head_width"], "bias": False}
    text["pattern"][0]["cross"]["init_args"] = cross
    text["pattern"][1]["mixer"]["init_args"]["heads"] = SIZES["heads"]
    for layer in text["pattern"]:
        layer["feedforward"]["init_args"]["hidden_width"] = SIZES["hidden"]
    encoder, decoder = said["encoders"]["image"], said["decoders"]["text"]
    encoder["tokenizer"]["init_args"]["patch"] = SIZES["patch"]
    resampler = encoder["resampler"]["init_args"]
    resampler |= {"queries": SIZES["latents"], "depth": SIZES["perceiver_depth"], "attention": cross}
    resampler["feedforward"]["init_args"]["hidden_width"] = SIZES["perceiver_hidden"]
    decoder["tokenizer"] |= {"rows": 50, "ids": {"bos": 0, "eos": [EOS], "unwritten": [HERE]}, "context_length": 24}
    decoder["placeholder"] = HERE
    return parse(ModelSpec, said, "flamingo")


@pytest.fixture(scope="module")
def model() -> Model:
    made = small().build().eval()
    randomise(made)
    return made


def same(model: Model) -> Flamingo:
    """The reference with the same weights: each is one of the model's, or a part of one, and no number is left."""
    made = Flamingo(SIZES).eval()
    theirs = as_reference(dict(model.named_parameters()))
    made.load_state_dict(theirs)
    assert sum(value.numel() for value in theirs.values()) == sum(value.numel() for value in model.parameters())
    return made


@pytest.fixture(scope="module")
def reference(model: Model) -> Flamingo:
    return same(model)


def padded(left: bool = False) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(ROWS), LENGTH), 5)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    for row, given in enumerate(ROWS):
        at = slice(LENGTH - len(given), LENGTH) if left else slice(0, len(given))
        ids[row, at], valid[row, at] = torch.tensor(given), True
    return ids, valid


def logits(model: Model, ids: Tensor, pictures: Tensor, valid: Tensor | None = None) -> Tensor:
    return text_logits(model, None, text_of(ids, valid), None, {"image": pictures})


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_logits_of_padded_rows_are_the_papers(model: Model, reference: Flamingo, left: bool) -> None:
    ids, valid = padded(left)
    with torch.no_grad():
        close(logits(model, ids, PICTURES, valid)[valid], torch.cat(reference(ROWS, PICTURES)), measured="logits")


def test_what_the_resampler_makes_is_the_papers(model: Model, reference: Flamingo) -> None:
    with torch.no_grad():
        outputs = model(Batch((), {}, PICTURES), decode=False)
        theirs = torch.stack([reference.resampled(row) for row in PICTURES])  # B N M E
    close(outputs.tokens["image"].x, theirs.flatten(1, 2))
    close(outputs.embedding["image"], theirs.mean((1, 2)))


def test_gradients_are_the_papers(model: Model, reference: Flamingo) -> None:
    """Of every parameter, in training mode: the gates', the latents', the language model's and CLIP's."""
    ids, valid = padded()
    model.train()
    model.zero_grad()
    reference.zero_grad()
    ours, theirs = logits(model, ids, PICTURES, valid)[valid], torch.cat(reference(ROWS, PICTURES))
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    model.eval()
    found = as_reference({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    wanted = {name: value.grad for name, value in reference.named_parameters() if value.grad is not None}
    assert found.keys() == wanted.keys() == dict(reference.named_parameters()).keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, gradient in wanted.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        error = float((found[name] - gradient).abs().max()) / scale
        assert error <= GRADIENT, f"the gradient of {name} is off by {error:.2e}"
        assert float(gradient.abs().max()) > 0, name


def test_pictures_after_a_token_or_before_the_last_do_not_matter(model: Model, reference: Flamingo) -> None:
    """What each token's logits hang on, in both: no picture that stands later, and none at all before the first."""
    with torch.no_grad():
        before = logits(model, torch.tensor(ROWS[:1]), PICTURES[:1])[0]
        changes = []
        for number in range(3):
            other = PICTURES[:1].clone()
            other[:, number] = other[:, number].flip(-1)
            ours = (logits(model, torch.tensor(ROWS[:1]), other)[0] - before).abs().amax(-1)
            theirs = (reference.row(ROWS[0], other[0]) - reference.row(ROWS[0], PICTURES[0])).abs().amax(-1)
            assert (ours > 1e-6).tolist() == (theirs > 1e-6).tolist()
            changes.append((ours > 1e-6).tolist().index(True))
    assert changes == [2, 6, 9]
    without = logits(model, torch.tensor(ROWS[2:]), PICTURES[2:])
    assert torch.equal(without, logits(model, torch.tensor(ROWS[2:]), PICTURES[2:].flip(1)))


def test_a_new_model_writes_what_its_language_model_does(model: Model) -> None:
    """Gates are 0 at first: pictures make no difference yet."""
    fresh = small().build().eval()
    fresh.initialise(0)
    ids, valid = padded()
    assert torch.equal(logits(fresh, ids, PICTURES, valid)[valid], logits(fresh, ids, PICTURES * 2 + 1, valid)[valid])
    assert not torch.equal(
        logits(model, ids, PICTURES, valid)[valid], logits(model, ids, PICTURES * 2 + 1, valid)[valid]
    )


def test_greedy_writing_with_a_cache_is_the_papers_without() -> None:
    """No two ids follow one another twice: random weights would soon write one id for ever."""
    model = small().build().eval()
    randomise(model)
    with torch.no_grad():  # biases of norms would have all texts say the same, and tied logits what they end with
        for name, value in model.named_parameters():
            if name.startswith("stacks.text") and name.endswith("norm.bias"):
                value.zero_()
        model.stack_of("text").norm.reset_parameters()
        model.get_parameter("decoders.text.tokenizer.weight").mul_(0.3)
    reference = same(model)
    prompts = [row[:-1] for row in ROWS]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.full((len(ROWS), int(lengths.max())), 5)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    with torch.no_grad():
        memory = model(Batch((), {}, PICTURES), decode=False).tokens
        written = GreedySpec(max_length=9, no_repeat_ngram=2).write(
            Decoding(model, "text", memory, len(ROWS)), Text(ids, lengths)
        )
        for row, prompt in enumerate(prompts):
            theirs = list(prompt)
            while len(theirs) < len(prompt) + 9:
                following = reference.row(theirs, PICTURES[row])[-1]
                after = [two for one, two in itertools.pairwise(theirs) if one == theirs[-1]]
                following[[HERE, *after]] = float("-inf")
                theirs.append(int(following.argmax()))
                if theirs[-1] == EOS:
                    break
            made = written[row].ids
            assert made == [index for index in theirs[len(prompt) :] if index != EOS]
    assert len({tuple(each.ids) for each in written}) == 3


def test_more_placeholders_than_pictures_are_refused(model: Model) -> None:
    with pytest.raises(InputError, match="Row 0 has 3 placeholders, but 2 pictures: each stands for one of them"):
        logits(model, torch.tensor(ROWS[:1]), PICTURES[:1, :2])
