"""What a run reads: whether each of its sets is there, and how fast its first, middle and last samples come."""

from __future__ import annotations

import statistics
import time

from mmformer.data.opening import open_samples
from mmformer.data.samples import Samples
from mmformer.data.sources import DataSpec
from mmformer.doctor.finding import Finding
from mmformer.errors import InputError

_LOOKED_AT = 16
_SLOW = 1.0


def reachable(data: DataSpec) -> list[Finding]:
    """A finding for each split of each source that the run names."""
    found = []
    for where, source in data.named.items():
        held_out = [data.validation, data.test] if source is data else []
        for split in dict.fromkeys([source.train, *filter(None, held_out)]):
            try:
                found.append(_split(open_samples(source.source, split, data.copies), f"{where}: {split}"))
            except InputError as error:
                found.append(Finding(f"{where}: {split}", "fault", source.source, str(error)))
            except OSError as error:
                said = f"{source.source}: {error.strerror or error}"
                found.append(
                    Finding(f"{where}: {split}", "fault", said, "Look at the address, the network, the rights.")
                )
    return found


def _split(samples: Samples, name: str) -> Finding:
    """Read some samples, from all over it."""
    number = len(samples)
    if not number:
        return Finding(name, "fault", "it has no samples", "Name another split.")
    seconds = []
    looked_at = sorted({round(place * (number - 1) / (_LOOKED_AT - 1)) for place in range(_LOOKED_AT)})
    for position in looked_at:
        began = time.monotonic()
        samples.read(*samples.locate(position))
        seconds.append(time.monotonic() - began)
    middle, longest = statistics.median(seconds), max(seconds)
    said = f"{number} samples in {len(samples.counts)} parts; {len(seconds)} read, in {1000 * middle:.1f} ms each"
    if longest < _SLOW:
        return Finding(name, "ok", said)
    copied = " The first of each part waits for its copy." if samples.elsewhere else ""
    fix = f"{copied} Raise data.workers, or bring the set nearer.".strip()
    return Finding(name, "warning", f"{said}, one in {longest:.1f} s", fix)
