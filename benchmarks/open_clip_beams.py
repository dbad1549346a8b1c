"""open_clip's own beam search, in a process of its own: it needs a transformers that is older than ours.

    pip install --no-deps --target DIR transformers==4.50.3 "tokenizers<0.22" "huggingface_hub<1"
    OPEN_CLIP_PEERS=DIR python -m benchmarks --only captioning_coca_beams

The process is told the weights and the pictures once, and writes their captions each time that it is asked.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.captions import NotHereError

FOLDER = "OPEN_CLIP_PEERS"
READY = "ready"


class OpenClipBeams:
    """Captions of pictures by ``generate`` of open_clip's CoCa, as the ids after the first.

    Args:
        model: open_clip's name of it.
        weights: of the model, which the process loads.
        image: B 3 H W.
        new: ids of each caption, none of which is eos.
        beams: in one group: its default of three groups is one search of a third of the beams, done three times.

    Raises:
        NotHereError: the libraries that it needs are not on this machine.
    """

    def __init__(self, model: str, weights: dict[str, Tensor], image: Tensor, new: int, beams: int) -> None:
        folder = os.environ.get(FOLDER)
        if not folder or not (Path(folder) / "transformers").is_dir():
            raise NotHereError(
                f"Set {FOLDER} to a folder with transformers 4.50.3 (see benchmarks/open_clip_beams.py)."
            )
        work = {"model": model, "weights": weights, "image": image, "new": new, "beams": beams}
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "work.pt"
            torch.save(work, file)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.open_clip_beams", str(file)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(folder).resolve()), str(Path.cwd())))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            atexit.register(self.process.kill)
            self._answer()

    def __call__(self) -> list[list[int]]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        made: list[list[int]] = json.loads(self._answer())
        return made

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("captioning_coca_beams: open_clip's process ended; what it said stands above.")
        return line


def main(file: str) -> None:
    import open_clip
    from transformers import MaxLengthCriteria

    from benchmarks.beside import quiet

    quiet()
    work: dict[str, Any] = torch.load(file, weights_only=True)
    model: nn.Module = open_clip.create_model(work["model"], load_weights=False).eval()
    model.load_state_dict(work["weights"])
    longest = work["new"] + 1  # with the first
    print(READY, flush=True)
    for _ in sys.stdin:
        made = model.generate(  # type: ignore[operator]
            work["image"],
            seq_len=longest + 1,  # which is to be more than the least; the criterion below ends a caption
            min_seq_len=longest,
            stopping_criteria=[MaxLengthCriteria(max_length=longest)],
            num_beams=work["beams"],
            num_beam_groups=1,
        )
        print(json.dumps(made[:, 1:longest].tolist()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
