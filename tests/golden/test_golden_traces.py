"""Golden traces: four tiny runs whose losses, predictions, sizes and model files no later change may alter.

Files are equal to the byte where processor, threads and library versions are those of the trace; elsewhere losses
agree within a tolerance and sizes are equal. Another processor's last bits are seen in dense models at 1e-6, in
factorized ones at 4e-4, since they turn singular vectors of nearly equal values, and at 2e-2 where weights are rounded
in training, one way or the other. A deliberate change of behaviour records them again, alone and with its reason:

    COMPRESSKD_RECORD_GOLDEN=1 python -m pytest tests/golden
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from compresskd.engine.environment import versions

HERE = Path(__file__).parent
DIGITS = (
    "data=digits",
    "measure.latency=false",
    "epochs=3",
    "teacher_fit.epochs=3",
    "rank=8",
    "hydra.run.dir=run",
)
RUNS = {
    "distill_then_compress": ("strategy=distill_then_compress",),
    "distill_then_compress_4_bits": ("strategy=distill_then_compress", "bits=4"),
    "fitnets": (
        "strategy=distill", "kd=fitnets", "data/augmentation=crop", "data.augmentation_bank=2", "train.mixup=0.2",
    ),
    "multi_stage": ("strategy=multi_stage",),
}  # fmt: skip
DENSE, FACTORIZED, ROUNDED = 1e-5, 2e-3, 5e-2
TOLERANCES = {"distill": DENSE, "quantize": ROUNDED}  # by stage
RECORDED_AS = {
    "folder_bytes": "stored_bytes",
    "file_bytes": "compact_bytes",
}  # the names when the traces were made
LOSSES = ("train_loss", "validation_loss")


def trace(directory):
    """What a run computed, in plain values."""
    record = json.loads((directory / "record.json").read_text())
    with np.load(directory / "predictions.npz") as arrays:
        predictions = {name: arrays[name].tolist() for name in sorted(arrays)}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "made_with": {
            "cpu": record["hardware"]["cpu"],
            "num_threads": record["hardware"]["num_threads"],
            **{
                k: v
                for k, v in versions().items()
                if k in ("python", "torch", "numpy", "scikit-learn", "safetensors")
            },
        },
        "epochs": [[line["stage"], line["epoch"], *(line[name] for name in LOSSES)] for line in lines],
        "sizes": {
            stage["name"]: {RECORDED_AS.get(k, k): v for k, v in stage["size"].items() if isinstance(v, int)}
            for stage in record["stages"]
        },
        "predictions": {name: "".join(map(str, values)) for name, values in predictions.items()},
        "model.ckd": hashlib.sha256((directory / "model" / "model.ckd").read_bytes()).hexdigest(),
    }


QUICK = ("distill_then_compress", "fitnets")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_the_run_is_as_it_was_recorded(run_cli, work, name):
    outcome = run_cli(*RUNS[name], *DIGITS)
    assert outcome.status == 0, outcome.err
    now, path = trace(work / "run"), HERE / f"{name}.json"
    if os.environ.get("COMPRESSKD_RECORD_GOLDEN"):
        path.write_text(json.dumps(now, indent=1) + "\n")
    then = json.loads(path.read_text())
    if now["made_with"] == then["made_with"]:
        assert now == then
    assert [epoch[:2] for epoch in now["epochs"]] == [epoch[:2] for epoch in then["epochs"]]
    for mine, recorded in zip(now["epochs"], then["epochs"], strict=True):
        assert mine[2:] == pytest.approx(recorded[2:], abs=TOLERANCES.get(mine[0], FACTORIZED))
    assert {k: {n: v for n, v in s.items() if n != "compact_bytes"} for k, s in now["sizes"].items()} == {
        k: {n: v for n, v in s.items() if n != "compact_bytes"} for k, s in then["sizes"].items()
    }
