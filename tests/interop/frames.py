"""What the tests of families have in common: a file's own are a class of one of these, and what else the family has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import Case, check_gradients, check_round_trip, check_writing, close, ended, imported, written
from torch import Tensor

from mmformer.generation.beam import BeamSpec
from mmformer.generation.generation import GenerationSpec
from mmformer.generation.sampling import GreedySpec
from mmformer.models.logits import text_logits, text_of
from mmformer.models.model import Model
from mmformer.types import Batch, Text


class Frame(ABC):
    """What all cases of a family show. A test file has a subclass, which says what is asked, and a fixture ``case``."""

    measured = "logits"

    @abstractmethod
    def ours(self, model: Model) -> Tensor:
        """What our model says."""

    @abstractmethod
    def theirs(self, case: Case) -> Tensor:
        """What a case's does of the same."""

    def test_outputs(self, case: Case, tmp_path: Path) -> None:
        model = imported(case, tmp_path / "bundle").model
        with torch.no_grad():
            close(self.ours(model), self.theirs(case), measured=self.measured)

    def test_gradients(self, case: Case, tmp_path: Path) -> None:
        model = imported(case, tmp_path / "bundle").model.train()
        case.reference.train()
        check_gradients(self.ours(model), model, self.theirs(case), case)
        case.reference.eval()

    def test_the_way_out(self, case: Case, tmp_path: Path) -> None:
        imported(case, tmp_path / "bundle")
        check_round_trip(case, tmp_path / "bundle", tmp_path / "out")


class Continuing(Frame):
    """Of decoders that go on from ids.

    Attributes:
        ids: B L.
        lengths: of the rows, where they are padded.
        prompt: how many of the ids it goes on from.
        eos: the id that ends what it writes.
        image: values of pictures, where it reads some.
    """

    ids: Tensor
    lengths = (11, 7, 3)
    prompt, eos = 4, 2
    image: Tensor | None = None

    @property
    def seen(self) -> dict[str, Tensor]:
        """What the reference is given besides ids."""
        return {} if self.image is None else {"pixel_values": self.image}

    def ours(self, model: Model) -> Tensor:
        others = {} if self.image is None else {"image": self.image}
        return text_logits(model, None, text_of(self.ids), None, others)

    def theirs(self, case: Case) -> Tensor:
        logits: Tensor = case.reference(input_ids=self.ids, **self.seen).logits
        return logits

    def test_outputs(self, case: Case, tmp_path: Path) -> None:
        model = imported(case, tmp_path / "bundle")
        with torch.no_grad():
            close(model.logits(self.ids, image=self.image), self.theirs(case), measured="logits")

    def check_padded(self, case: Case, bundle: Path, valid: Tensor) -> Any:
        """Logits of ids that are real; returns all that the reference makes."""
        model = imported(case, bundle)
        with torch.no_grad():
            theirs = case.reference(input_ids=self.ids, attention_mask=valid.long(), **self.seen)
        ours = model.logits(self.ids, image=self.image, valid=valid)
        close(ours[valid], theirs.logits[valid], measured="logits")
        return theirs

    def test_logits_of_padded_rows(self, case: Case, tmp_path: Path) -> None:
        self.check_padded(case, tmp_path / "bundle", _before(self.lengths, self.ids.shape[1]))

    def test_writing(self, case: Case, tmp_path: Path) -> None:
        model, read = imported(case, tmp_path / "bundle").model, None
        if self.image is not None:
            read = Batch((), {}, self.image)
        check_writing(model, case.reference, self.ids[:, : self.prompt], self.eos, read=read, **self.seen)


class Translating(Frame):
    """Of an encoder of ids and a decoder that writes others, named source and target with us.

    A file has a fixture ``writer``, too: a case whose logits are far apart, so that what it writes varies.

    Attributes:
        ids, lengths: what is read, B L, and the lengths of its rows where they are padded.
        written: what has been written so far.
        first: the place in it of the first id that gradients are of.
        start, eos: the ids that what is written begins and ends with.
    """

    ids: Tensor
    lengths = (17, 9, 4)
    written: Tensor
    first, start, eos = 0, 0, 1

    @property
    def valid(self) -> Tensor:
        return _before(self.lengths, self.ids.shape[1])

    def ours(self, model: Model) -> Tensor:
        return text_logits(model, None, text_of(self.ids, self.valid), text_of(self.written[:, self.first :]), {})

    def theirs(self, case: Case) -> Tensor:
        return self.padded(case, self.written[:, self.first :])

    def padded(self, case: Case, written: Tensor) -> Tensor:
        """A case's logits of padded rows."""
        mask = self.valid.long()
        logits: Tensor = case.reference(self.ids, attention_mask=mask, decoder_input_ids=written).logits
        return logits

    def test_logits_and_hidden_states(self, case: Case, tmp_path: Path) -> None:
        model = imported(case, tmp_path / "bundle")
        with torch.no_grad():
            theirs = case.reference(self.ids, decoder_input_ids=self.written)
            close(model.logits(self.ids, decoder_ids=self.written), theirs.logits, measured="logits")
            read = model.model(Batch((), {}, text=text_of(self.ids))).tokens["source"].x
            close(read, theirs.encoder_last_hidden_state)

    def test_outputs(self, case: Case, tmp_path: Path) -> None:
        """Of padded rows."""
        model = imported(case, tmp_path / "bundle")
        with torch.no_grad():
            ours = model.logits(self.ids, decoder_ids=self.written, valid=self.valid)
            close(ours, self.padded(case, self.written), measured="logits")

    def test_the_loss(self, case: Case, tmp_path: Path) -> None:
        """Of texts of several lengths, with what a decoder begins with put before them."""
        model, real = imported(case, tmp_path / "bundle").model, _before((15, 8, 3), 15)
        labels = torch.where(real, self.written.roll(-1, 1), -100)
        with torch.no_grad():
            theirs = case.reference(self.ids, attention_mask=self.valid.long(), labels=labels).loss
            target = Text(labels.clamp(min=0), real.sum(1))
            ours = model(Batch((), {}, text=text_of(self.ids, self.valid), target=target)).losses["target"]
        close(ours.total / ours.items, theirs, varied=False, measured="loss")

    def check_written(self, case: Case, bundle: Path, spec: GenerationSpec, **options: Any) -> None:
        """Token for token, over padded rows. Where room ends, none is forced to end, which Marian's would be."""
        asked = {"do_sample": False, "max_new_tokens": spec.max_length, "forced_eos_token_id": None, **options}
        theirs = case.reference.generate(self.ids, attention_mask=self.valid.long(), **asked)[:, 1:]
        begun, read = torch.full((len(self.ids), 1), self.start), Batch((), {}, text=text_of(self.ids, self.valid))
        ours = written(imported(case, bundle).model, spec, begun, read)
        assert ours == ended(theirs, self.eos)
        assert any(len(set(row)) > 3 for row in ours), "more than one id over and over"

    def test_greedy_writing(self, writer: Case, tmp_path: Path) -> None:
        self.check_written(writer, tmp_path / "bundle", GreedySpec(max_length=12), num_beams=1)

    @pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0])
    def test_writing_by_beams(self, writer: Case, penalty: float, tmp_path: Path) -> None:
        """``early_stopping="never"`` is a search that ends when nothing better can come, which is ours."""
        options = {"num_beams": 4, "length_penalty": penalty, "early_stopping": "never"}
        spec = BeamSpec(beams=4, length_penalty=penalty, max_length=10)
        self.check_written(writer, tmp_path / "bundle", spec, **options)


def _before(lengths: Sequence[int], longest: int) -> Tensor:
    """Which places of rows of such lengths are real, B L."""
    return torch.arange(longest) < torch.tensor(lengths)[:, None]
