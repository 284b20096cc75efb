"""Kill whole runs (SIGKILL) at random moments, go on with them, and compare them with runs that nobody disturbed.

    python benchmarks/kill_runs.py [--kills 100] [--jobs 2] [--seed 0] [--folder DIR] [-- KEY=VALUE ...]

Every case is run once undisturbed. Then it is started in folder after folder, killed up to a few times, by turns gone
on with by `resume` and by the command again, and run to its end; its teacher is killed along with it. Equal must be
all that `compresskd repeat` compares (model.ckd, epochs, predictions, every count of the record), every checkpoint
byte by byte, and the same of the teacher. The exit code is 1 where anything differs.
"""

import argparse
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskd.reports.repeat import compare_runs
from compresskd.run import FINISHED, read_record

COMMON = ("strategy=distill_then_compress", "rank=8", "epochs=3", "teacher_fit.epochs=3", "outputs_dir=outputs",
          "train.checkpoint_seconds=0.02", "teacher_fit.train.checkpoint_seconds=0.02")  # fmt: skip
CASES = {
    "bits=4": ("bits=4",),
    "fitnets bits=4": ("kd=fitnets", "kd.match=same_name", "bits=4"),
}
MOST_KILLS = 8  # of one run, so that it comes to an end
POLL = 0.003  # seconds between two looks
IMPORTED = [
    "compresskd.config.build",
    "compresskd.cli.jobs",
    "compresskd.listeners.console",
    "compresskd.data.digits",
    "hydra",
]

_forks = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Undisturbed:
    """A finished run, the processor's seconds after which its record was there, and those that it took."""

    folder: Path
    begun: float
    seconds: float


def spent(process: Any) -> float:
    """Seconds of the processor that a running process has used: however busy the machine is, they tell where it is."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(folder: Path, arguments: tuple[str, ...]) -> Any:
    """The command line in a process of its own, forked off one that has imported everything: an import is no run."""
    process = _forks.Process(target=_command, args=(folder, arguments))
    process.start()
    return process


def _command(folder: Path, arguments: tuple[str, ...]) -> None:
    os.chdir(folder)
    os.environ["COMPRESSKD_CACHE"] = str(folder / "cache")
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    from compresskd.cli import main

    main(arguments)


def undisturbed(folder: Path, arguments: tuple[str, ...]) -> Undisturbed:
    """Run once, in peace."""
    folder.mkdir(parents=True)
    begun = used = 0.0
    process = start(folder, arguments)
    while process.is_alive():
        now = spent(process)
        used = used if math.isinf(now) else now
        if not begun and (folder / "run" / "record.json").exists():
            begun = used
        time.sleep(POLL)
    if process.exitcode:
        sys.exit((folder / "said.txt").read_text())
    return Undisturbed(folder, begun, used)


def disturbed(
    folder: Path, arguments: tuple[str, ...], like: Undisturbed, seed: int
) -> tuple[int, list[str]]:
    """Start, kill and go on until the run is finished: how many kills, and in what it differs from `like`."""
    folder.mkdir(parents=True)
    draw, kills = random.Random(seed), 0
    for attempt in range(MOST_KILLS + 1):
        resumes = attempt % 2 == 1 and (folder / "run" / "record.json").exists()
        process = start(folder, ("resume", "run") if resumes else arguments)
        moment = math.inf if kills == MOST_KILLS else draw.uniform(0.9 * like.begun, like.seconds)
        while process.is_alive() and spent(process) < moment:
            time.sleep(POLL)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode not in (0, -signal.SIGKILL):
            return kills, [f"exit code {process.exitcode}: {(folder / 'said.txt').read_text()[-2000:]}"]
        if is_finished(folder / "run"):  # or killed on its way out
            break
    found = []
    for name in ("run", *teachers(folder)):
        found += [f"{name}: {line}" for line in different(folder / name, like.folder / name)]
    return kills, found


def is_finished(directory: Path) -> bool:
    """Whether the run there has come to its end, whatever became of its process."""
    return (directory / "record.json").exists() and read_record(directory).status == FINISHED


def teachers(folder: Path) -> list[str]:
    """The folders of teachers, below `folder`."""
    return [str(path.relative_to(folder)) for path in (folder / "outputs" / "teachers").iterdir()]


def different(one: Path, other: Path) -> list[str]:
    """In what two runs differ."""
    found = [f"{row.what}: {line}" for row in compare_runs(one, other) for line in row.found]
    files = [
        {str(path.relative_to(top)) for part in ("checkpoints", "model") for path in (top / part).rglob("*")}
        for top in (one, other)
    ]
    found += [f"only in one: {name}" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        if (one / name).is_file() and (one / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name} differs")
    return found + [f"left behind: {path.name}" for path in one.glob(".*")]


def main() -> None:
    """Kill until enough were killed; print every difference and the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.mkdtemp(prefix="kill_runs-")))
    parser.add_argument("overrides", nargs="*", help="one case, instead of those of the file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    _forks.set_forkserver_preload(IMPORTED)
    cases = {" ".join(options.overrides): tuple(options.overrides)} if options.overrides else CASES
    commands = {name: (*COMMON, *case, "hydra.run.dir=run") for name, case in cases.items()}
    with ThreadPoolExecutor(options.jobs) as pool:
        whole = dict(zip(commands, pool.map(undisturbed, [options.folder / f"case{k}" for k in range(len(commands))],
                                            commands.values()), strict=True))  # fmt: skip
        kills = runs = wrong = 0
        names = list(commands)
        while kills < options.kills:
            batch = [(runs + k, names[(runs + k) % len(names)]) for k in range(2 * options.jobs)]
            jobs = [
                pool.submit(disturbed, options.folder / f"run{number}", commands[name], whole[name],
                            1000 * options.seed + number)
                for number, name in batch
            ]  # fmt: skip
            for (number, name), job in zip(batch, jobs, strict=True):
                count, found = job.result()
                kills, runs, wrong = kills + count, runs + 1, wrong + bool(found)
                print(
                    f"{name}, run {number}: {count} kills, {'equal' if not found else 'DIFFERENT'}",
                    flush=True,
                )
                for line in found:
                    print(f"    {line}", flush=True)
    print(f"{kills} kills in {runs} runs: {runs - wrong} equal, {wrong} different")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
