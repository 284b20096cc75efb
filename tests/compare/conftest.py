import json
from pathlib import Path

import numpy as np
import pytest

NUM_TEST = 200


def make_record(**changes):
    """A finished record of one stage; `changes` by dotted keys, such as `data__fingerprint` or `config__rank`."""
    record = {
        "schema": 1,
        "status": "finished",
        "strategy": "distill",
        "created": "2026-11-24T20:35:12+00:00",
        "updated": "2026-11-24T20:36:12+00:00",
        "wall_seconds": 41.2,
        "overrides": ["rank=16"],
        "config": {"rank": 16, "seed": 0, "kd": {"alpha": 0.7}, "strategy": {"name": "distill"}},
        "seed": 0,
        "versions": {"compresskd": "0.1.0"},
        "git": None,
        "hardware": {"cpu": "AMD", "num_cores": 2, "num_threads": 2, "device": "cpu", "gpu": None},
        "data": {"name": "digits", "fingerprint": "d0", "test_fingerprint": "t0", "num_test": NUM_TEST},
        "teacher": {"key": "k0", "source": "reused", "directory": None, "metrics": {"test_accuracy": 0.97}},
        "stages": [
            {
                "name": "distill",
                "kind": "Fit",
                "status": "finished",
                "seconds": 9.3,
                "epochs": 30,
                "best_epoch": 27,
                "metrics": {"test_accuracy": 0.9, "validation_accuracy": 0.91},
                "size": {"num_parameters": 1000, "folder_bytes": 4000, "macs": 2000},
                "compression": {"folder_bytes": 4.0},
                "latency_ms": {"batch_1": 0.05, "batch_32": 0.3},
                "layers": {
                    "fc": {
                        "kind": "TTLinear",
                        "ranks": [16],
                        "num_parameters": 100,
                        "num_parameters_dense": 1000,
                    }
                },
                "skipped": {"out": "break-even"},
            }
        ],
        "final": "distill",
        "error": None,
    }
    for key, value in changes.items():
        node = record
        *path, last = key.split("__")
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[last] = value
    return record


def write_run(directory: Path, *, right=None, **changes) -> Path:
    """Write a run directory; `right` [N] bool also writes predictions and the accuracy that they give."""
    directory.mkdir(parents=True)
    record = make_record(**changes)
    if right is not None:
        right = np.asarray(right, dtype=bool)
        targets = np.arange(len(right), dtype=np.uint8) % 10
        predicted = np.where(right, targets, (targets + 1) % 10).astype(np.uint8)
        for stage in record["stages"]:
            stage["metrics"]["test_accuracy"] = float(right.mean())
        np.savez_compressed(directory / "predictions.npz", targets=targets, distill=predicted)
    (directory / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return directory


@pytest.fixture
def record():
    """The function that makes a record as a dict."""
    return make_record


@pytest.fixture
def run():
    """The function that writes a run directory."""
    return write_run


@pytest.fixture
def sweep(tmp_path, run):
    """Two ranks, three seeds each: rank 16 is better and larger. Returns the folder."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "sweep"
    hard = generator.random(NUM_TEST)
    for rank, errors in ((4, 40), (16, 20)):
        for seed in range(3):
            noise = generator.normal(0, 0.02, NUM_TEST)
            right = np.ones(NUM_TEST, dtype=bool)
            right[np.argsort(-(hard + noise))[: errors + seed]] = False
            run(
                folder / f"rank={rank},seed={seed}",
                right=right,
                seed=seed,
                config__seed=seed,
                config__rank=rank,
                overrides=[f"rank={rank}", f"seed={seed}"],
                stages__0__size={
                    "num_parameters": 250 * rank,
                    "folder_bytes": 1000 * rank,
                    "macs": 500 * rank,
                },
                stages__0__latency_ms={"batch_1": rank / 100},
            )
    return folder
