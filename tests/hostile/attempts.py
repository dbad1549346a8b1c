"""Files that strangers damaged or made up, and what may become of them: they are read, or refused in words, within a
time and a memory that are stated.
"""

from __future__ import annotations

import copy
import math
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmformer.errors import InputError

SECONDS = 20.0
"""Of one processor's time, for one input."""

MEMORY = 2 * 2**30
"""Bytes that reading one input may ask for, besides what is taken already."""

COUNTS: dict[str, Counter[str]] = {}
"""Kind of input -> what became of those that were tried; see ``--counts``."""


SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50_257, "n_positions": 12, "n_inner": 16}
    | {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "bert": {"vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"intermediate_size": 16, "max_position_embeddings": 12, "type_vocab_size": 2}
    | {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    | dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
}
"""What the smallest configs of some families say."""


class TooSlowError(Exception):
    """An input takes longer than it may."""


@contextmanager
def within(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Fails where what is inside takes longer, on however busy a machine, or asks for more memory."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {seconds:g} seconds of a processor")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def outcome(attempt: Callable[[], object], seconds: float = SECONDS, memory: int = MEMORY) -> str:
    """What became of an input: "read", or "refused" in words. Anything else that is raised fails the test."""
    try:
        with within(seconds, memory):
            attempt()
    except InputError as error:
        cause: BaseException | None = error
        while cause is not None:  # memory that was asked for and not there is not refused, but was tried to be had
            assert not isinstance(cause, MemoryError | TooSlowError), f"{error}"
            cause = cause.__cause__
        return "refused"
    return "read"


def count(kind: str, what: str, number: int = 1) -> None:
    """Note what became of an input."""
    COUNTS.setdefault(kind, Counter())[what] += number


def fuzz(kind: str, inputs: st.SearchStrategy[Any], attempt: Callable[[Any], object], budget: int) -> Counter[str]:
    """Try so many inputs, the same in every run; what became of them. The simplest that fails is reported."""
    found: Counter[str] = Counter()

    @settings(max_examples=budget, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(inputs)
    def each(value: Any) -> None:
        found[outcome(lambda: attempt(value))] += 1

    each()
    for what, number in found.items():
        count(kind, what, number)
    return found


EDITS = st.tuples(
    st.sampled_from(("flip", "set", "put in", "take out", "repeat", "cut")),
    st.one_of(st.integers(0, 80), st.integers(0, 2**20)),  # at the beginning, where headers are, or anywhere
    st.binary(min_size=1, max_size=8),
)


def damaged(*whole: bytes) -> st.SearchStrategy[bytes]:
    """Files of which some bytes are others, new, gone or there twice, or whose end is."""
    return st.builds(_edited, st.sampled_from(whole), st.lists(EDITS, min_size=1, max_size=4))


def _edited(whole: bytes, edits: Sequence[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(whole)
    for what, number, new in edits:
        at = number % (len(data) + 1)
        if what == "flip" and at < len(data):
            data[at] ^= 1 << new[0] % 8
        elif what == "set":
            data[at : at + len(new)] = new
        elif what == "put in":
            data[at:at] = new
        elif what == "take out":
            del data[at : at + new[0]]
        elif what == "repeat":
            data[at:at] = data[at : at + 16 * new[0]]
        elif what == "cut":
            del data[at:]
    return bytes(data)


VALUES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 7, 10**9, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf),
        *("", "x", "1", "é", "\x00", "null", "../x", "/dev/zero", "a" * 5000, "os.system", "&a [*a]", "[[[", "1e9"),
        *([], [[]], {}, [None], [0] * 3, [-1, "x"], {"": 0}, {"a": {"a": {}}}, {"class_path": "os.system"}),
        *({"class_path": "builtins.eval", "init_args": {"source": "1"}}, {"init_args": 5}, {"from": "../x"}),
    ]
)


def strange(tree: Any) -> st.SearchStrategy[Any]:
    """Plain data in which a few values are others, of any type, or gone, or keys are new."""
    places = st.lists(st.integers(0, 999), min_size=1, max_size=8)
    change = st.tuples(places, st.sampled_from(("change", "change", "remove", "add")), VALUES)
    return st.builds(_changed, st.just(tree), st.lists(change, min_size=1, max_size=3))


def _changed(tree: Any, changes: Sequence[tuple[list[int], str, Any]]) -> Any:
    root = [copy.deepcopy(tree)]
    for places, what, value in changes:
        held: Any = root
        key: Any = 0
        for place in places:
            inner = held[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            held, key = inner, [*inner][place % len(inner)] if isinstance(inner, dict) else place % len(inner)
        if what == "remove" and held is not root:
            del held[key]
        elif what == "add" and isinstance(held, dict):
            held[f"{key}_"] = copy.deepcopy(value)
        else:
            held[key] = copy.deepcopy(value)
    return root[0]
