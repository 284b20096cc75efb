"""Measure the reference machine that fixed plans of factorized layers follow from, and write it into the package.

    python benchmarks/tt_reference.py [--times 20] [--out FILE]

The file is data of the package: whoever changes it changes the plans of all later runs, and with them their last bits.
It holds the least times of many measurements, so that a busy machine is no matter, at one and at two threads.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from compresskd.tt.execution.machine import REFERENCE, measure, smoothed

THREADS = (1, 2)
DIGITS = 3
FASTEST = "bandwidth"  # the one rate; all else is time


def least(one: Any, other: Any, pick: Any) -> Any:
    """Number by number through nested lists."""
    if isinstance(one, list):
        return [least(a, b, pick) for a, b in zip(one, other, strict=True)]
    return pick(one, other)


def rounded(value: Any) -> Any:
    """All numbers to a few digits."""
    return [rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.{DIGITS - 1}e}")


def reference(times: int) -> dict[str, Any]:
    """The best of so many measurements."""
    best = asdict(measure(torch.device("cpu"), torch.float32))
    for _ in range(times - 1):
        again = asdict(measure(torch.device("cpu"), torch.float32))
        best = {k: least(best[k], again[k], max if k == FASTEST else min) for k in best}
    best |= {"mm": smoothed(best["mm"]), "bmm": smoothed(best["bmm"])}
    return {k: rounded(v) for k, v in best.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--out", type=Path, default=REFERENCE)
    options = parser.parse_args()
    found = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        found[str(threads)] = reference(options.times)
        print(f"{threads} thread(s): {found[str(threads)]['operation']:.1e} s an operation", flush=True)
    options.out.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
