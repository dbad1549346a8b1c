"""What was looked at, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "fault"]


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        check: what.
        state: "warning" is what a run may live with, "fault" what it would fail at.
        found: in one line.
        fix: what to do; "" where nothing is to be done.
    """

    check: str
    state: State
    found: str
    fix: str = ""


def table(findings: Sequence[Finding]) -> str:
    """The findings as lines, each with its fix below it."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8}{finding.check:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<{width + 10}}→ {finding.fix}")
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """How many of each there are."""
    count = {state: sum(finding.state == state for finding in findings) for state in ("ok", "warning", "fault")}
    said = [f"{count['ok']} of {len(findings)} checks are well"]
    said += [f"{count[state]} {state}{'s' * (count[state] > 1)}" for state in ("warning", "fault") if count[state]]
    return ", ".join(said) + "."
