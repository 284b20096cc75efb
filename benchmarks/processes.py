"""Runs of several processes against runs of one: equal curves and predictions, kills, throughput.

    python benchmarks/processes.py equal [--processes 2 4] [--case NAME ...] [--folder DIR]
    python benchmarks/processes.py kill [--kills 10] [--folder DIR]
    python benchmarks/processes.py speed [--rounds 3] [--minilm FOLDER] [--case ResNet-20] [--folder DIR]

`equal` trains small models of images, texts and tokens by one process and by several, and prints the largest
difference of all validation figures, how many predictions differ, and the counts of samples. Dropout is off: its
numbers are drawn by each process. `kill` ends a process chosen at random (SIGKILL) at random moments, measures until
all have ended, resumes, and compares with a run that nobody disturbed. `speed` measures training steps of a ResNet-20
(global batch 128) and, where its folder is given, of MiniLM (length 64) by one and two processes of one thread in turn,
and says what share of the time of the first process went into all-reduces, waiting for the other one included, by how
much its processor time shrank, and what two runs of half the batch that share nothing come to: more than that is not
to be had on the machine.
"""

import argparse
import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compresskd.reports.repeat import compare_runs
from compresskd.run import FINISHED, read_metrics, read_record

SMALL_BERT = (
    "{model_type: bert, num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}"
)
SMALL_GPT = "{model_type: gpt2, n_layer: 2, n_embd: 32, n_head: 2}"
COMMON = ("measure.latency=false", "epochs=3", "teacher_fit.epochs=2")
IMAGES = ("data=digits", "data/augmentation=crop", "teacher=resnet20", "teacher.depth=8", "student=resnet20",
          "student.depth=8", "student.width_multiplier=0.5", "optimizer=sgd", "optimizer.lr=0.003")  # fmt: skip
CASES = {
    "images": (*IMAGES, "strategy=distill"),
    "images, kd=fitnets": (*IMAGES, "strategy=distill", "kd=fitnets"),
    "images, kd=rkd": (*IMAGES, "strategy=distill", "kd=rkd"),
    "images, bits=4": (*IMAGES, "strategy=distill", "bits=4"),
    "images, tensor trains": (*IMAGES, "strategy=compress_then_distill", "rank=4"),
    "texts": ("data=text", "data.path=texts.csv", "data.tokenizer=bytes", "data.max_length=48", "teacher=huggingface",
              f"teacher.config={SMALL_BERT}", "student=huggingface", f"student.config={SMALL_BERT}",
              "task=text_classification", "strategy=distill", "kd=soft_targets", "train.dropout=0"),
    "tokens": ("data=python_docs", "data.num_validation=64", "data.num_test=64", "train.max_steps=40",
               "teacher_fit.train.max_steps=40", "task=causal_lm", "teacher=huggingface",
               f"teacher.config={SMALL_GPT}", "student=huggingface", f"student.config={SMALL_GPT}", "strategy=distill",
               "kd=soft_targets", "train.dropout=0"),
}  # fmt: skip
SPEED = {"ResNet-20": 2880, "MiniLM": 1100}  # samples of an epoch
WORDS = (
    "the",
    "a",
    "small",
    "large",
    "model",
    "net",
    "learns",
    "loses",
    "holds",
    "weight",
    "teacher",
    "student",
)
ENDED_WITHIN = 30.0  # seconds


def command(arguments: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, in `folder`."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COMPRESSKD_CACHE": str(folder / "cache")}
    said = (folder / "said.txt").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "compresskd", *arguments],
        cwd=folder, stdout=said, stderr=said, env={**os.environ, **own, **environment},
    )  # fmt: skip


def finished(folder: Path, run: str, arguments: Sequence[str]) -> Path:
    """The directory of a run, which is made here unless it is there."""
    directory = folder / run
    if not directory.is_dir() and command((*arguments, f"hydra.run.dir={run}"), folder).wait():
        sys.exit((folder / "said.txt").read_text())
    return directory


def write_texts(path: Path, length: int, count: int) -> None:
    """Two classes of texts of random words, told apart by one of them."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label"))
        for number in range(count):
            words = draw.choices(WORDS, k=draw.randint(length // 2, length))
            words[draw.randrange(len(words))] = ("good", "bad")[number % 2]
            rows.writerow((" ".join(words), ("no", "yes")[number % 2]))


def equal(options: argparse.Namespace) -> bool:
    """Compare runs of several processes with those of one."""
    write_texts(options.folder / "texts.csv", 8, 400)
    right = True
    for number, (case, own) in enumerate(CASES.items()):
        if options.case and case not in options.case:
            continue
        outputs = f"outputs_dir=outputs{number}"
        one = finished(options.folder, f"case{number}_1", (*COMMON, *own, outputs))
        if own[:1] == IMAGES[:1]:  # for comparison: what other rounding does to as many steps
            other = finished(
                options.folder, f"case{number}_order", (*COMMON, *own, outputs, "train.channels_last=false")
            )
            compared(f"{case}, 1 process, other memory order", one, other)
        for count in options.processes:
            several = finished(
                options.folder, f"case{number}_{count}", (*COMMON, *own, outputs, f"processes={count}")
            )
            right &= compared(f"{case}, {count} processes", one, several)
    return right


def compared(what: str, one: Path, other: Path) -> bool:
    """Print how two runs differ; whether their counts are the same."""
    curves = [read_metrics(each / "metrics.jsonl") for each in (one, other)]
    gaps = [
        abs(a[key] - b[key])
        for a, b in zip(*curves, strict=True)
        for key in a
        if key.startswith("validation_")
    ]
    predictions = [dict(np.load(each / "predictions.npz")) for each in (one, other)]
    rows = differing = 0
    for name, values in predictions[0].items():
        rows += len(values)
        differing += int((~np.isclose(values, predictions[1][name], rtol=1e-3, atol=1e-4)).sum())
    counts = [_counts(read_record(each)) for each in (one, other)]
    same = counts[0] == counts[1] and all(
        a.shape == predictions[1][n].shape for n, a in predictions[0].items()
    )
    print(
        f"{what}: {len(curves[0])} validations, largest difference {max(gaps):.2g}; {differing} of {rows} rows of "
        f"predictions differ; counts {'equal' if same else f'DIFFER: {counts}'}",
        flush=True,
    )
    return same


def _counts(record: Any) -> list[Any]:
    stages = [(s["name"], s["size"]["num_parameters"], _served(s)) for s in record.stages]
    return [record.data[key] for key in ("num_train", "num_validation", "num_test")] + stages


def _served(stage: dict[str, Any]) -> list[Any]:
    return [[each["num_computed"], each["num_served"]] for each in stage.get("teacher_outputs", {}).values()]


def kill(options: argparse.Namespace) -> bool:
    """Kill a process at random, wait for the others, resume, compare."""
    arguments = (*COMMON, *IMAGES, "strategy=distill", "kd=fitnets", "bits=4", "processes=2",
                 "train.checkpoint_seconds=0.2",
                 "teacher_fit.train.checkpoint_seconds=0.2", "epochs=4")  # fmt: skip
    started = time.monotonic()
    whole = finished(options.folder, "undisturbed", (*arguments, "outputs_dir=outputs"))
    lasted = time.monotonic() - started
    draw, right = random.Random(options.seed), True
    for number in range(options.kills):
        run = f"killed{number}"
        process = command((*arguments, f"hydra.run.dir={run}", f"outputs_dir={run}_outputs"), options.folder)
        _wait_for_record(options.folder / run, process)
        time.sleep(draw.uniform(0, 0.7 * lasted))
        family = [process.pid, *_children(process.pid)]
        victim = draw.randrange(len(family))
        alive = process.poll() is None
        if alive:
            os.kill(family[victim], signal.SIGKILL)
        killed = time.monotonic()
        process.wait()
        while any(map(_is_alive, family)) and time.monotonic() < killed + 2 * ENDED_WITHIN:
            time.sleep(0.05)
        took, status = time.monotonic() - killed, read_record(options.folder / run).status
        if status != FINISHED and command(("resume", run), options.folder).wait():
            sys.exit((options.folder / "said.txt").read_text()[-3000:])
        found = [line for row in compare_runs(whole, options.folder / run) for line in row.found]
        right &= took <= ENDED_WITHIN and not found
        print(
            f"kill {number}: rank {victim if alive else 'none'} of {len(family)}, all ended after {took:.1f} s with "
            f"exit code {process.returncode}, record {status}; resumed, {found or 'equal'}",
            flush=True,
        )
    return right


def _wait_for_record(directory: Path, process: subprocess.Popen[bytes]) -> None:
    while not (directory / "record.json").exists() and process.poll() is None:
        time.sleep(0.05)


def _children(process: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def speed(options: argparse.Namespace) -> bool:
    """Samples a second of training by one process, by two, and by two runs that share nothing, in turn."""
    cases = {
        "ResNet-20": ("data=synthetic", "data.input_shape=[3,32,32]", "data.num_classes=10",
                      "data.num_test=10", "student=resnet20")
    }  # fmt: skip
    if options.minilm:
        for share in (1, 2):
            write_texts(options.folder / f"{SPEED['MiniLM'] // share}.csv", 64, SPEED["MiniLM"] // share)
        cases["MiniLM"] = (
            "data=text", f"student.id={options.minilm}", "student=huggingface", "teacher=mlp",
            f"data.tokenizer={options.minilm}", "data.max_length=64", "task=text_classification", "optimizer.lr=2e-5",
            "data.num_test=10", "data.num_validation=10",
        )  # fmt: skip
    for case, own in cases.items():
        if options.case and case not in options.case:
            continue
        found: dict[str, list[_Speed]] = {"one": [], "two": [], "apart": []}
        for turn in range(options.rounds):
            for how, speeds in found.items():
                share = 2 if how == "apart" else 1
                words = (*own, *_data(case, SPEED[case] // share), f"train.batch_size={128 // share}",
                         f"processes={2 if how == 'two' else 1}")  # fmt: skip
                names = [f"{case}_{turn}_{how}{part}" for part in range(share)]
                speeds.append(_trained(options.folder, words, names))
        one, two, apart = (statistics.median(each.rate for each in found[how]) for how in found)
        alone, by_two = (statistics.median(each.processor for each in found[how]) for how in ("one", "two"))
        share_of_sums = statistics.median(each.share_of_sums for each in found["two"])
        print(
            f"{case}: {one:.1f} and {two:.1f} samples/s by one and two processes, {two / one:.2f} times; two runs of "
            f"half the batch that share nothing: {apart / one:.2f} times; {100 * share_of_sums:.0f}% of the time in "
            f"all-reduces; processor time of the first process {alone / by_two:.2f} times less",
            flush=True,
        )
    return True


@dataclass(frozen=True)
class _Speed:
    """Of trainings at once: samples a second of all, of the first its seconds of the processor, and what share of its
    time went into all-reduces.
    """

    rate: float
    processor: float
    share_of_sums: float


def _data(case: str, size: int) -> tuple[str, ...]:
    return (f"data.path={size}.csv",) if case == "MiniLM" else (f"data.num_train={size}",)


def _trained(folder: Path, words: Sequence[str], names: Sequence[str]) -> _Speed:
    """Train by the command line, under each of these names at once."""
    shared = ("measure.latency=false", "strategy=train", "epochs=2", "kd=none")
    code = "import sys, benchmarks_processes as b; b.timed(sys.argv[1:])"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *shared, *words, f"hydra.run.dir={name}"],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    said = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        sys.exit("".join(out + err for out, err in said))
    lines = [read_metrics(folder / name / "metrics.jsonl") for name in names]
    told = json.loads(said[0][0].splitlines()[-1])
    rate = sum(max(line["samples_per_second"] for line in each) for each in lines)
    return _Speed(rate, told["training"], told["collectives"] / sum(line["seconds"] for line in lines[0]))


def timed(arguments: Sequence[str]) -> None:
    """Run the command in this process, and print last the seconds that its training and its collectives took."""
    from compresskd.cli import main
    from compresskd.distributed import Group
    from compresskd.distributed.gradients import Gradients
    from compresskd.training import loop

    spent = {"collectives": 0.0, "training": 0.0}

    def measured(call: Callable[..., Any], what: str, clock: Callable[[], float]) -> Callable[..., Any]:
        def of_time(*given: Any, **named: Any) -> Any:
            started = clock()
            try:
                return call(*given, **named)
            finally:
                spent[what] += clock() - started

        return of_time

    Gradients.add_up = measured(Gradients.add_up, "collectives", time.perf_counter)  # type: ignore[method-assign]
    Group.sum = measured(Group.sum, "collectives", time.perf_counter)  # type: ignore[method-assign]
    loop.train_epoch = measured(loop.train_epoch, "training", time.process_time)  # pyright: ignore
    code = main(arguments)
    print(json.dumps(spent))
    sys.exit(code)


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("equal", "kill", "speed"))
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--case", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minilm", type=Path, help="a folder of all-MiniLM-L6-v2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    known = CASES if options.what == "equal" else SPEED if options.minilm else ("ResNet-20",)
    if other := set(options.case).difference(known):
        parser.error(
            f"--case: got {', '.join(other)}, expected of {', '.join(known)} (MiniLM takes --minilm FOLDER)"
        )
    options.folder = Path(options.folder or tempfile.mkdtemp(prefix="processes-")).absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "benchmarks_processes.py").write_bytes(Path(__file__).read_bytes())
    sys.exit(0 if {"equal": equal, "kill": kill, "speed": speed}[options.what](options) else 1)


if __name__ == "__main__":
    main()
