"""The command line itself: help, unknown commands, exit codes; quick, for torch is not loaded for them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mmformer.cli import main as module
from mmformer.cli.main import COMMANDS, main
from mmformer.errors import InputError

LIGHT = """
import sys
heavy = ("torch", "pytorch_lightning", "torchvision", "torchaudio", "timm")
sys.modules.update(dict.fromkeys(heavy))  # None: whoever imports one fails
from mmformer.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def light(*words: str) -> subprocess.CompletedProcess[str]:
    """A process that cannot import torch."""
    command = [sys.executable, "-W", "error", "-c", LIGHT, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_every_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, (_, group, what) in COMMANDS.items():
        assert f"  {name} " in out
        assert what in out
        assert f"{group}:" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_help_imports_next_to_nothing() -> None:
    code = "import sys; from mmformer.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "usage: mmformer COMMAND" in done.stdout
    assert not loaded & {"torch", "numpy", "PIL", "jsonargparse", "rich", "yaml"}


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mmformer {version('mmformer')}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("clasify", " Did you mean 'classify'?"), ("--classify", " Did you mean 'classify'?"), ("xyzzy", "")],
)
def test_an_unknown_command(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word, "something"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mmformer: there is no command '{word}'.{hint} The commands are fit, ")
    assert err.count("\n") == 1


def test_every_command_has_a_module_with_a_run() -> None:
    for module_name, _, _ in COMMANDS.values():
        source = Path(module.__file__).with_name(f"{module_name}.py").read_text()
        assert "def run(command: str, words: Sequence[str]) -> int:" in source


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("unknown",), "there is no command"),
        (("classify",), "arguments are required: BUNDLE, PICTURE"),
        (("classify", "bundle", "no.png"), "no.png: there is no such file"),
        (("classify", "bundle", __file__, "--labels", ","), "--labels is empty"),
        (("retrieve", "bundle", "cat"), "needs what to look among"),
        (("embed", "bundle", "--texts", "cat", "--output", "x.csv"), "its name must end with"),
        (("vocabulary", "trian"), "Did you mean 'train'?"),
    ],
)
def test_mistakes_are_told_before_torch_is_loaded(words: tuple[str, ...], message: str) -> None:
    done = light(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["classify", "retrieve", "embed", "vocabulary"])
def test_a_commands_help_needs_no_torch(command: str) -> None:
    done = light(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: mmformer {command}")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="there is no command 'unknown'"):
        main(["unknown", "--debug"])
    assert main(["unknown"]) == 2
    done = light("--debug", "unknown")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "InputError: there is no command 'unknown'" in done.stderr


def test_an_interruption_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupted)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "mmformer: interrupted.\n"
    with pytest.raises(KeyboardInterrupt):
        main(["fit", "--debug"])


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(module, "run", run)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("width"), "unexpected KeyError: 'width' (a defect"),
        (RuntimeError("CUDA error:\n  out of memory\n"), "unexpected RuntimeError: CUDA error: out of memory (a"),
        (ValueError(), "unexpected ValueError: no message (a defect"),
        (OSError("cannot identify"), "unexpected OSError: cannot identify (a defect"),
        (
            TypeError("Caught TypeError in worker 0.\nOriginal Traceback (most recent call last):\n  x\nTypeError: no"),
            "unexpected TypeError: TypeError: no (a defect",
        ),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_1(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(monkeypatch, error)
    assert main(["fit"]) == 1
    out, err = capsys.readouterr()
    end = ", or something mmformer does not check yet); --debug shows where\n"
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"mmformer: {said}") and err.endswith(end)
    with pytest.raises(type(error)):
        main(["fit", "--debug"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "a/b.csv"), "a/b.csv: Permission denied. Change its permissions, or"),
        (OSError(28, "No space left on device", "runs/x"), "runs/x: No space left on device. Make room there, or"),
        (OSError(28, "No space left on device"), "No space left on device. Make room there, or"),
        (FileNotFoundError(2, "No such file or directory", b"c.png"), "c.png: No such file or directory.\n"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_2(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(monkeypatch, error)
    assert main(["fit"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"mmformer: {said}")
    with pytest.raises(type(error)):
        main(["fit", "--debug"])


def test_a_defect_shows_its_traceback_with_debug_only() -> None:
    code = "import sys; from mmformer.cli import main as m; m.run = lambda words: 1 / 0; sys.exit(m.main(sys.argv[1:]))"
    for words, traces in ((["fit"], False), (["fit", "--debug"], True)):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) is traces
        assert "ZeroDivisionError: division by zero" in done.stderr


def test_the_codes_of_commands_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run", lambda words: {"fit": 0, "test": 7}[words[0]])
    assert main(["fit"]) == 0
    assert main(["test"]) == 7


def test_a_reader_that_has_gone_is_no_error() -> None:
    code = "from mmformer.cli import main as m; m.run = lambda words: [print('x' * 80) for _ in range(9999)] and 0; "
    command = [sys.executable, "-c", f"{code}import sys; sys.exit(m.main(['fit']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_an_error_from_a_worker_process_is_shown_alone() -> None:
    wrapped = "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File"
    assert module.plain(f'{wrapped} "x.py", line 3\nmmformer.errors.InputError: a.png: damaged.\n') == "a.png: damaged."
    assert module.plain("InputError: is a word here") == "InputError: is a word here"
