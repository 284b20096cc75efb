"""Synthetic records for `compresskd compare`, and its time and memory on them.

    python benchmarks/compare_records.py                     10,000 records in a temporary folder, timed
    python benchmarks/compare_records.py --num 200 --keep DIR    leave the records in DIR, to look at or to use again

The records look like those of a sweep (strategies x ranks x bits x learning rates x seeds) of a network with
20 layers, with predictions and training curves; a few are unfinished, failed, or of another machine or test set.
"""

import argparse
import io
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STRATEGIES = {
    "train": ["train"],
    "distill": ["distill"],
    "compress": ["compress"],
    "distill_then_compress": ["distill", "compress", "finetune"],
    "compress_then_distill": ["compress", "distill"],
    "multi_stage": ["rank_32", "rank_16", "rank_8"],
}
NUM_TEST = 1_000
NUM_EPOCHS = 10
LAYERS = [f"layer{block}.{unit}.conv{half}" for block in (1, 2, 3) for unit in (0, 1, 2) for half in (1, 2)]


class Setting(NamedTuple):
    """One run of the synthetic study."""

    strategy: str
    rank: int
    bits: int
    lr: float
    alpha: float
    temperature: float
    width: int
    seed: int


def make_records(directory: Path, num: int, *, seed: int = 0, num_seeds: int = 5) -> None:
    """Write `num` run directories below `directory`."""
    for number, setting in enumerate(itertools.islice(_settings(num_seeds), num)):
        random.seed(f"{seed} {number}")
        record = make_record(setting)
        _spoil(record, number)
        name = "_".join(
            f"{key}{value}" for key, value in setting._asdict().items() if key not in ("strategy", "rank")
        )
        folder = directory / f"{setting.strategy}_r{setting.rank}" / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record, indent=2))
        (folder / "metrics.jsonl").write_text(_curves(record))
        (folder / "predictions.npz").write_bytes(_predictions(record, setting.seed))


def _settings(num_seeds: int) -> Iterator[Setting]:
    grid = (range(8), (1.0, 4.0), (0.3, 0.7), (0.1, 0.05, 0.01), (32, 8, 4), STRATEGIES, (4, 8, 16, 2, 32))
    for width, temperature, alpha, lr, bits, strategy, rank in itertools.product(*grid):
        for seed in range(num_seeds):
            yield Setting(strategy, rank, bits, lr, alpha, temperature, width, seed)


def make_record(setting: Setting) -> dict:
    """One finished record whose accuracy depends on everything, with noise."""
    strategy, rank, bits, lr, *_, width, seed = setting
    stages = STRATEGIES[strategy]
    size = 4_000 * rank * bits / 32 * (1 + width / 4)
    accuracy = (
        0.95 - 0.25 * math.exp(-size / 30_000) - 0.01 * (bits == 4) - (0.02 if strategy == "train" else 0)
    )
    accuracy += 0.01 * stages.index(stages[-1]) + random.gauss(0, 0.003)
    return {
        "schema": 1,
        "status": "finished",
        "strategy": strategy,
        "created": f"2026-11-24T20:35:{seed:02d}+00:00",
        "updated": "2026-11-24T20:40:00+00:00",
        "wall_seconds": round(random.uniform(30, 60), 3),
        "overrides": [f"strategy={strategy}", f"rank={rank}", f"bits={bits}", f"seed={seed}", f"optimizer.lr={lr}"],
        "config": _config(setting),
        "seed": seed,
        "versions": {"compresskd": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "git": {"revision": "0" * 40, "dirty": False},
        "hardware": {"cpu": "AMD EPYC", "num_cores": 2, "num_threads": 2, "device": "cpu", "gpu": None},
        "data": {"name": "synthetic", "fingerprint": "0d0d", "test_fingerprint": "7e57", "num_test": NUM_TEST},
        "teacher": {"key": "7eac", "source": "reused", "directory": "outputs/teachers/7eac",
                    "metrics": {"test_accuracy": 0.96}, "size": {"folder_bytes": 1_700_000}},
        "stages": [_stage(name, accuracy - 0.02 * (len(stages) - 1 - i), size, rank) for i, name in enumerate(stages)],
        "final": stages[-1],
        "error": None,
    }  # fmt: skip


def _config(setting: Setting) -> dict:
    strategy, rank, bits, lr, alpha, temperature, width, seed = setting
    filler = {f"option_{i}": i / 7 for i in range(40)}
    stages = {
        name: {"_target_": "compresskd.stages.Fit", "epochs": NUM_EPOCHS, "rank": rank, "alpha": alpha}
        for name in STRATEGIES[strategy]
    }
    return {"rank": rank, "bits": bits, "seed": seed, "epochs": NUM_EPOCHS, "device": "cpu",
            "optimizer": {"_target_": "torch.optim.SGD", "lr": lr, "momentum": 0.9, "weight_decay": 5e-4},
            "kd": {"alpha": alpha, "temperature": temperature}, "train": filler,
            "student": {"_target_": "compresskd.models.resnet.ResNet", "depth": 20, "width": 16 + width},
            "teacher": {"_target_": "compresskd.models.resnet.ResNet", "depth": 56, "width": 16, "seed": 0},
            "data": {"path": f"/data/{seed}", "name": "synthetic", "num_classes": 10},
            "strategy": {"stages": stages}}  # fmt: skip


def _stage(name: str, accuracy: float, size: float, rank: int) -> dict:
    accuracy = round(accuracy * NUM_TEST) / NUM_TEST
    layers = {layer: {"kind": "TTConv2d", "ranks": [min(rank, 16), rank], "num_parameters": 30 * rank + 100,
                      "num_parameters_dense": 2304} for layer in LAYERS}  # fmt: skip
    return {
        "name": name, "kind": "Fit", "status": "finished", "seconds": round(random.uniform(8, 12), 2),
        "epochs": NUM_EPOCHS, "best_epoch": NUM_EPOCHS - 1,
        "metrics": {"validation_accuracy": accuracy + 0.002, "validation_loss": 2 - 2 * accuracy,
                    "test_accuracy": accuracy, "test_loss": 2.1 - 2 * accuracy, "teacher_agreement": accuracy - 0.01},
        "size": {"num_parameters": int(size / 4), "folder_bytes": int(size) + 512, "macs": int(size * 90)},
        "compression": {"parameters": 425_000 / (size / 4), "folder_bytes": 1_700_000 / size, "macs": 8.0},
        "latency_ms": {"batch_1": round(0.2 + size / 1e6 + random.random() / 100, 4), "batch_32": 1.5},
        "layers": layers if name != "train" else {},
        "skipped": {"linear": f"break-even: {650 + rank} parameters at rank {rank}, 650 dense"},
        "checkpoint": f"checkpoints/{name}",
    }  # fmt: skip


def _spoil(record: dict, number: int) -> None:
    kind = number % 250
    if kind == 50:
        record |= {
            "status": "failed",
            "error": {"type": "NonFiniteLoss", "message": "loss is nan at epoch 3"},
        }
    elif kind == 100:
        record |= {"status": "interrupted"}
    elif kind == 150:
        record["hardware"] = {**record["hardware"], "num_threads": 16}
    elif kind == 200:
        record["data"] = {**record["data"], "test_fingerprint": "07e8"}


def _curves(record: dict) -> str:
    lines = []
    for stage, epoch in itertools.product(record["stages"], range(NUM_EPOCHS)):
        reached = (
            stage["metrics"]["validation_accuracy"] - 0.3 * math.exp(-epoch / 2) + random.gauss(0, 0.003)
        )
        lines.append({"stage": stage["name"], "epoch": epoch, "train_loss": 2 - 2 * reached,
                      "validation_accuracy": reached, "validation_loss": 2.1 - 2 * reached})  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


def _predictions(record: dict, seed: int) -> bytes:
    import numpy as np

    targets = np.random.default_rng(0).integers(0, 10, NUM_TEST).astype(np.uint8)
    difficulty = np.random.default_rng(1).random(NUM_TEST) + 0.1 * np.random.default_rng(seed).random(
        NUM_TEST
    )
    arrays = {"targets": targets}
    for stage in record["stages"]:
        wrong = round((1 - stage["metrics"]["test_accuracy"]) * NUM_TEST)
        noise = np.random.default_rng(random.getrandbits(32)).normal(0, 0.05, NUM_TEST)
        hardest = np.argsort(-(difficulty + noise))[:wrong]
        arrays[stage["name"]] = targets.copy()
        arrays[stage["name"]][hardest] = (targets[hardest] + 1) % 10
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.save(plain, array)
            archive.writestr(f"{name}.npy", plain.getvalue())
    return stream.getvalue()


def timed(arguments: list[str]) -> str:
    """Runs `compare` in a process of its own: seconds by the clock and of the processor, peak memory."""
    code = (
        "import resource, sys\nfrom compresskd.compare import main\ncode = main(sys.argv[1:])\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('usage', use.ru_utime + use.ru_stime, use.ru_maxrss, file=sys.stderr)\nsys.exit(code)"
    )
    start = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    processor, peak = map(float, done.stderr.rsplit("usage", 1)[1].split())
    lines = len(done.stdout.splitlines())
    return (
        f"{seconds:.2f} s ({processor:.2f} s of processor), peak {peak / 1024:.0f} MiB, {lines} lines shown"
    )


def main() -> None:
    """Generate, then time the import, five records, and all of them in every format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument(
        "--keep", type=Path, help="write the records here and leave them, or use those that are here"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "records"
        few = Path(scratch) / "few"
        if not folder.exists():
            make_records(folder, options.num)
        make_records(few, 5)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import compresskd.compare"], check=True)
        print(f"import compresskd.compare: {time.perf_counter() - start:.2f} s (whole process)", flush=True)
        reports = [
            flag
            for kind in ("html", "csv", "json", "markdown")
            for flag in (f"--{kind}", f"{scratch}/c.{kind}")
        ]
        for what, arguments in (
            ("5 records", [str(few)]),
            (f"{options.num} records", [str(folder)]),
            (f"{options.num} records, --by strategy,rank", [str(folder), "--by", "strategy,rank"]),
            (f"{options.num} records, html + csv + json + markdown", [str(folder), *reports]),
        ):
            print(f"{what}: {timed(arguments)}")
        for path in sorted(Path(scratch).glob("c.*")):
            print(f"{path.suffix[1:]}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
