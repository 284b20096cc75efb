"""What a run costs beside its training: python benchmarks/run_cost.py [--turns 3] [OVERRIDE ...].

`compresskd OVERRIDE ...` (default: strategy=distill_then_compress rank=16) runs in a fresh process for each turn, in a
folder of its own, so that the teacher is trained anew. The time of the process is divided among the parts below: each
second counts once, for the innermost part that is running. Printed are medians over the turns of the processor time
and of the clock on the wall. Training is what `fit` takes, the teacher's included, with its validation. A process that
does nothing but `import torch` takes turns with the runs: the yardstick of the machine.
"""

import argparse
import builtins
import contextlib
import functools
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

DEFAULT = ["strategy=distill_then_compress", "rank=16"]
TRAINING, BEGIN, END, REST = "training", "interpreter", "exit", "rest"
# Part -> what is called in it, where it is called.
PARTS = {
    "import": (),
    "compose": ("compresskd.config.compose:compose_jobs",),
    "compose again, by Hydra": ("compresskd.cli.jobs:_run_by_hydra",),
    "data": ("compresskd.config.parts:Parts.data",),
    "checks": ("compresskd.config.build:build_jobs", "compresskd.cli.execute:check_same_config"),
    "begin of the record": ("compresskd.engine.experiment:Experiment._record",),
    TRAINING: ("compresskd.stages.train_student:fit",),
    "objective, teacher's outputs": ("compresskd.stages.train_student:train_student",),
    "calibration": ("compresskd.compression.compression:calibrate",),
    "proof by trial": tuple(
        f"compresskd.compression.trial:{name}" for name in ("read_by_others", "carrying", "differing")
    ),
    "factorization": ("compresskd.engine.strategy:_carried_out",),
    "scores": ("compresskd.engine.strategy:score",),
    "latency": ("compresskd.measure:latency",),
    "MACs, coverage, plans": (
        "compresskd.measure.macs:count",
        "compresskd.engine.strategy:coverage",
        "compresskd.engine.strategy:plans_used",
    ),
    "coding": (
        "compresskd.artifact:compact_sizes",
        "compresskd.artifact.sizes:compact.write_compact",
    ),
    "fingerprints": ("compresskd.artifact:fingerprint", "compresskd.engine.strategy:fingerprints"),
    "writing": (
        "compresskd.artifact:save",
        "compresskd.artifact:write_final",
        "compresskd.engine.strategy:store_predictions",
        "compresskd.run:Run.save",
        "compresskd.run:Run.append_metrics",
        "compresskd.engine.strategy:write_training",
    ),
    "reading back": (
        "compresskd.engine.strategy:_restore",
        "compresskd.engine.teacher:Teacher.obtain",
    ),
    "screen": (
        "compresskd.listeners.console:Reporter.epoch",
        "compresskd.listeners.console:Reporter.step",
        "compresskd.listeners.console:Reporter.stage_finished",
        "compresskd.listeners.console:Reporter.note",
        "compresskd.listeners.console:stages_table",
    ),
}


def main() -> None:
    """Run the command, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", default=DEFAULT)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options.overrides)), file=sys.stderr)
        return
    turns, torch_alone = [], []
    for _ in range(options.turns):
        before, start = _processor_of_children(), time.time()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        torch_alone.append((_processor_of_children() - before, time.time() - start))
        turns.append(outside(options.overrides))
    seconds = {
        part: tuple(statistics.median(column) for column in zip(*(turn[part] for turn in turns), strict=True))
        for part in (BEGIN, *PARTS, REST, END)
    }
    print(f"compresskd {' '.join(options.overrides)}: medians of {options.turns} runs")
    print(f"{'part':<30} {'processor s':>11} {'wall s':>8}")
    for part, (processor, wall) in seconds.items():
        print(f"{part:<30} {processor:11.2f} {wall:8.2f}")
    totals = [tuple(map(sum, zip(*turn.values(), strict=True))) for turn in turns]
    trained = [turn[TRAINING] for turn in turns]
    beside = [[t - f for t, f in zip(*pair, strict=True)] for pair in zip(totals, trained, strict=True)]
    shares = [[b / f for b, f in zip(*pair, strict=True)] for pair in zip(beside, trained, strict=True)]
    for name, figures in (
        ("total", totals),
        ("beside training", beside),
        ("import torch, alone", torch_alone),
    ):
        processor, wall = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:<30} {processor:11.2f} {wall:8.2f}")
    processor, wall = (statistics.median(column) for column in zip(*shares, strict=True))
    print(f"{'beside training / training':<30} {processor:11.1%} {wall:8.1%}")


def outside(overrides: list[str]) -> dict[str, list[float]]:
    """Seconds of the processor and of the wall by part, of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--inside", *overrides, f"outputs_dir={folder}"]
        before, start = _processor_of_children(), time.time()
        ran = subprocess.run(
            command, check=False, env={**os.environ, "STARTED": str(start)}, text=True, capture_output=True
        )
        processor, wall = _processor_of_children() - before, time.time() - start
    if ran.returncode:
        raise SystemExit(ran.stdout + ran.stderr)
    told = json.loads(ran.stderr.splitlines()[-1])
    return {
        **told,
        END: [processor - sum(t[0] for t in told.values()), wall - sum(t[1] for t in told.values())],
    }


def _processor_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def inside(overrides: list[str]) -> dict[str, list[float]]:
    """The same, but for what comes after the run, in this process."""
    clock = Clock(PARTS)
    clock.seconds[BEGIN] = [time.process_time(), time.time() - float(os.environ["STARTED"])]
    with clock.part("import"):
        from compresskd.cli import main as compresskd

        clock.watch_parts()
    clock.watch_imports()
    status = compresskd(overrides)
    seconds = clock.finish()
    if status:
        raise SystemExit(status)
    return seconds


class Clock:
    """Divides the time of this process among parts: each moment is of the innermost one."""

    def __init__(self, parts: Mapping[str, Sequence[str]]) -> None:
        self.seconds = {part: [0.0, 0.0] for part in (*parts, REST)}
        self._parts = parts
        self._last = (time.process_time(), time.time())
        self._running = [REST]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is of this part."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def watch_parts(self) -> None:
        """Make each function, `module:attribute`, a part of its name."""
        for name, places in self._parts.items():
            for place in places:
                module, _, path = place.partition(":")
                *owners, last = path.split(".")
                owner = functools.reduce(getattr, owners, importlib.import_module(module))
                setattr(owner, last, self._watched(name, getattr(owner, last)))

    def restart(self) -> dict[str, list[float]]:
        """What `finish` tells, and begin again."""
        found = self.finish()
        self.seconds = {part: [0.0, 0.0] for part in found}
        return found

    def skip(self) -> None:
        """Count what has run since the last change of parts in none of them."""
        self._last = (time.process_time(), time.time())

    def watch_imports(self) -> None:
        """Imports that a function makes when it is called."""
        builtins.__import__ = self._watched("import", builtins.__import__)

    def finish(self) -> dict[str, list[float]]:
        """Seconds of the processor and of the wall by part."""
        self._charge()
        return self.seconds

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        return watched

    def _charge(self) -> None:
        now = (time.process_time(), time.time())
        for number in (0, 1):
            self.seconds[self._running[-1]][number] += now[number] - self._last[number]
        self._last = now


if __name__ == "__main__":
    main()
