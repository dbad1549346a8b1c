"""Each module can be the first that is imported: none relies on what another has set up before."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mmformer

SCRIPT = """
import importlib, os, pkgutil, sys
import jsonargparse, pytorch_lightning, sentencepiece, timm, torch, torchaudio, torchvision, webdataset
import torch._subclasses.fake_tensor, torch.utils.flop_counter
import mmformer

names = [each.name for each in pkgutil.walk_packages(mmformer.__path__, "mmformer.") if each.name[-8:] != "__main__"]
failed = 0
for name in names:
    process = os.fork()  # with the libraries that are there, and nothing of ours
    if process == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    failed += os.waitpid(process, 0)[1] != 0
print(f"{failed} of {len(names)} failed")
"""


@pytest.mark.slow
def test_each_module_imports_alone() -> None:
    assert list(mmformer.__path__)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], check=False, capture_output=True, text=True)
    assert done.stdout.startswith("0 of "), done.stdout + done.stderr
    assert int(done.stdout.split()[2]) > 100
