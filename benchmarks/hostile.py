"""How many hostile inputs were tried, and what became of them: the long forms of tests/hostile, counted.

``python -m benchmarks.hostile`` (an hour on one core) or ``--short`` (the fast suite's own, a minute).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

WELL = ("read", "refused", "found", "harmless")
"""What may become of an input; any other is told by the test that failed."""


def run(short: bool, counts: Path) -> int:
    """Try them all; pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/hostile", "--counts", str(counts)]
    return subprocess.run([*command, "-m", "not slow" if short else ""], cwd=ROOT, check=False).returncode


def table(counts: dict[str, dict[str, int]]) -> str:
    """The counts, as Markdown."""
    lines = ["| inputs | tried | " + " | ".join(WELL) + " |", "|---|---:|" + "---:|" * len(WELL)]
    for kind, found in sorted(counts.items()):
        row = [kind, f"{sum(found.values()):,}", *(f"{found.get(what, 0):,}" for what in WELL)]
        lines.append(f"| {' | '.join(row)} |")
    total = sum(sum(found.values()) for found in counts.values())
    return "\n".join([*lines, f"| in all | {total:,} |" + " |" * len(WELL)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="as many as in the fast suite")
    short = parser.parse_args().short
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts.json")
        code = run(short, counts)
        print(table(json.loads(counts.read_text(encoding="utf-8"))))
    print("Silent damage, crashes, hangs, memory beyond its limit, code that ran: ", end="")
    print("0." if code == 0 else "see the tests that failed, above.")
    return code


if __name__ == "__main__":
    sys.exit(main())
