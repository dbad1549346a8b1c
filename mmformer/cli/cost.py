"""``mmformer plan`` and ``mmformer profile``: what a run costs, before it starts, and where its time goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mmformer.cli.running import Options, own_options, print_help, run_spec, wants_help
from mmformer.errors import InputError

if TYPE_CHECKING:
    from mmformer.scaling.mixers import Fit
    from mmformer.training.planning import Plan
    from mmformer.training.profiling import Profile
    from mmformer.training.run import RunSpec

N = TypeVar("N", int, float)

OPTIONS: Options = {
    "devices": (True, "how many of which, such as 64xH200 (default: 1xH100)", ("plan",)),
    "mfu": (True, "the share of the devices' peak that training reaches (default: 0.4)", ("plan",)),
    "text_tokens": (True, "tokens of a text, or several numbers: samples have them by turns", ("plan",)),
    "target_tokens": (True, "the same of texts that decoders write (default: as --text_tokens)", ("plan",)),
    "seconds": (True, "seconds of a sound, or several numbers", ("plan",)),
    "row": (True, "tokens of a row at which mixers are compared (default: not compared)", ("plan",)),
    "steps": (True, "updates that are timed, after some that are not (default: 10)", ("profile",)),
    "json": (False, "print JSON instead of tables", ("plan", "profile")),
}
"""The commands' own options."""

DESCRIPTIONS = {
    "plan": (
        "Tell what a run costs before a device is rented: parameters, FLOPs, memory by layout, the largest batch, the "
        "time. The model is built without weights, and its updates are counted without data; of what only data can "
        "say, the longest that the run lets in is taken, unless it is said. Every field of the YAML file can be set as "
        "a dotted option too."
    ),
    "profile": (
        "Tell where the time of a run's updates goes: a few of them, on its data and on this machine, by phase and by "
        "module. Nothing is written. Every field of the YAML file can be set as a dotted option too."
    ),
}


def run(command: str, words: Sequence[str]) -> int:
    from mmformer.cli.options import split
    from mmformer.training.run import RunSpec

    if wants_help(words):
        return print_help(command, DESCRIPTIONS[command], OPTIONS, words)
    given = split(words, RunSpec, own_options(OPTIONS, command))
    return {"plan": _plan, "profile": _profile}[command](run_spec(command, given), given.own)


def _numbers(own: Mapping[str, str], name: str, kind: Callable[[str], N]) -> tuple[N, ...]:
    """The numbers that an option has, with commas between them; none where it is not given.

    Raises:
        InputError: one of them is none, or not positive.
    """
    try:
        found = tuple(kind(part) for part in own[name].split(",")) if name in own else ()
    except ValueError:
        found = (kind("0"),)
    if any(number <= 0 for number in found):
        whole = "whole numbers" if kind is int else "numbers"
        raise InputError(f"--{name} must be positive {whole} with commas between them, but is '{own[name]}'.")
    return found


def _number(own: Mapping[str, str], name: str, kind: Callable[[str], N], default: N) -> N:
    found = _numbers(own, name, kind)
    if len(found) > 1:
        raise InputError(f"--{name} must be one number, but is '{own[name]}'.")
    return found[0] if found else default


def _plan(spec: RunSpec, own: Mapping[str, str]) -> int:
    from mmformer.scaling.cost import MFU
    from mmformer.scaling.devices import read_devices
    from mmformer.training.planning import plan
    from mmformer.training.stand_in import Lengths

    devices = read_devices(own.get("devices", "1xH100"))
    lengths = Lengths(
        _numbers(own, "text_tokens", int), _numbers(own, "target_tokens", int), _numbers(own, "seconds", float)
    )
    made = plan(spec, devices, lengths, _number(own, "mfu", float, MFU), _number(own, "row", int, 0) or None)
    if "json" in own:
        print(json.dumps(_plain(made), indent=2))
        return 0
    _print_plan(made, lengths == Lengths())
    return 0


def _plain(value: Any) -> Any:
    """Named tuples as objects, as JSON has them."""
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _print_plan(made: Plan, longest: bool) -> None:
    from mmformer.cli.output import print_cells
    from mmformer.scaling.cost import MARGIN

    device, update = made.devices.device, made.seconds
    rows = ", ".join(f"{name} {tokens:,}" for name, tokens in made.lengths.items())
    said = "the longest that the run lets in: --text_tokens and --seconds say others" if longest else "as said"
    print(
        f"parameters      {made.parameters:,}, of which {made.trained:,} train\n"
        f"an update       {made.batch:,} samples; rows of tokens: {rows} ({said})\n"
        f"                {_flops(made.forward)} forward, {_flops(made.backward)} backward; of both, "
        f"{100 * made.attention:.1f} % are products between tokens in softmax attention\n"
        f"on {made.devices}, at {100 * made.mfu:.0f} % of {_flops(device.peak(made.precision))}/s each "
        f"({made.precision}):\n"
        f"                {_time(update)} an update, {made.batch / update:,.0f} samples/s, "
        f"{_time(update * made.steps)} for {made.steps:,} updates, where data is there in time"
    )
    for name, cache in made.caches.items():
        each = cache.bytes / cache.length
        print(
            f"decoder {name:<8}{_bytes(cache.bytes)} of cache for a text of {cache.length:,} tokens in float32 "
            f"({_bytes(each)} a token), {_bytes(cache.read)} of what it reads"
        )
    print(f"\nMemory of each device, of {_bytes(device.memory)}; an update may take {100 * MARGIN:.0f} %:")
    columns = ("layout", "samples", "parameters", "gradients", "optimizer", "activations", "gathered")
    print_cells(
        (*columns, "most at once", "fits", "largest batch"),
        [
            (
                " × ".join(f"{name} {size}" for name, size in layout.sizes.items()) or "one device",
                f"{layout.samples:,}",
                *map(_bytes, layout.memory),
                "yes" if layout.fits else "no",
                f"about {_rounded(layout.largest):,}" if layout.largest else "none",
            )
            for layout in made.layouts
        ],
    )
    for name, fits in made.mixers.items():
        _print_mixers(name, fits)


def _print_mixers(name: str, fits: list[Fit]) -> None:
    """What a stack would be with each mixer."""
    from mmformer.cli.output import print_cells

    print(f"\nThe stack '{name}' with other mixers, for the gradient of one row of that length:")
    print_cells(
        ("mixer", "FLOPs", "memory", "rows that fit", "longest row that fits"),
        [
            (fit.mixer, _flops(fit.flops), _bytes(fit.bytes), f"{fit.rows:,}", f"{_rounded(fit.longest):,}")
            for fit in fits
            if not fit.refused
        ],
    )
    for fit in fits:
        if fit.refused:
            print(f"  {fit.mixer}: {fit.refused}")


def _rounded(number: int) -> int:
    """Two digits of it, down."""
    digits = max(0, len(str(number)) - 2)
    return int(number // 10**digits * 10**digits)


def _scaled(value: float, base: float, units: Sequence[str]) -> str:
    place = 0
    while abs(value) >= base and place < len(units) - 1:
        value, place = value / base, place + 1
    return f"{value:.3g} {units[place]}" if abs(value) < 1000 else f"{value:,.0f} {units[place]}"


def _flops(value: float) -> str:
    return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _bytes(value: float) -> str:
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _time(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:,.1f} hours"
    if value >= 60:
        return f"{value / 60:.1f} minutes"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _profile(spec: RunSpec, own: Mapping[str, str]) -> int:
    from mmformer.training.profiling import profile

    made = profile(spec, _number(own, "steps", int, 10))
    if "json" in own:
        print(json.dumps(_plain(made) | {"lever": made.lever}, indent=2))
        return 0
    _print_profile(made)
    return 0


def _print_profile(made: Profile) -> None:
    from mmformer.cli.output import print_cells

    print(f"{made.steps} updates of {made.batch:,} samples on {made.device}, {made.precision}:")
    print_cells(
        ("phase", "median, ms", "share"),
        [
            *((name, f"{1000 * each.median:.1f}", f"{100 * each.share:.1f} %") for name, each in made.phases.items()),
            ("all of it", f"{1000 * made.step:.1f}", ""),
        ],
    )
    print("\nModules, by what each takes itself, without those inside it:")
    print_cells(
        ("module", "forward, ms", "backward, ms", "share of both"),
        [
            (each.name, f"{1000 * each.forward:.1f}", f"{1000 * each.backward:.1f}", f"{100 * each.share:.1f} %")
            for each in made.modules
        ],
    )
    print(f"\nThe largest lever is {made.lever}")
