"""A finished run keeps its model in both forms, and its record says what it takes and what the ratio is made of."""

import json
from math import prod
from pathlib import Path

import pytest
import torch

import compresskd
from compresskd import artifact
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.listeners.console import stages_table
from compresskd.reports.evaluate import evaluate_run
from compresskd.run import factors

pytestmark = pytest.mark.slow

QUANTIZED = ("strategy=distill_then_compress", "rank=4", "bits=4", "epochs=1", "quant.other_bits=16")


def test_model_folder_is_the_scored_model_at_the_recorded_size(run_strategy):
    record, directory = run_strategy(*QUANTIZED)
    folder, size = directory / "model", record.stage(record.final)["size"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.ckd", "model.safetensors", "structure.json",
    ]  # fmt: skip
    assert record.model["file_bytes"] == size["file_bytes"] == (folder / "model.ckd").stat().st_size
    assert sum(record.model["split"].values()) == record.model["file_bytes"]
    assert record.model["packed_bytes"] == size["packed_bytes"] >= size["file_bytes"]
    assert json.loads((directory / "record.json").read_text())["model"] == record.model
    scored = artifact.load(directory / record.stage(record.final)["checkpoint"])
    x = torch.rand(5, 1, 8, 8)
    with torch.inference_mode():
        for place in (directory, folder, folder / "model.ckd"):
            assert torch.equal(compresskd.load(place)(x), scored(x))


def test_what_is_written_says_what_data_it_takes(run_strategy):
    _, directory = run_strategy("strategy=train", "epochs=0")
    for place in ("model", "model/model.ckd"):
        about = artifact.read(directory / place).about
        assert about["class_names"] == [str(number) for number in range(10)]
        assert about["input_shape"] == [1, 8, 8]
        assert (about["mean"], about["std"], about["data"]) == ([0.3053], [0.3760], "digits")
        assert about["versions"] == {"compresskd": compresskd.__version__}
    checkpoint = directory / "checkpoints" / "train"
    assert artifact.read(checkpoint).about == {}


def test_the_factors_multiply_to_the_ratio_of_files(run_strategy):
    record, directory = run_strategy(*QUANTIZED)
    final = record.stage(record.final)
    teacher = artifact.read(Path(record.teacher["directory"]) / "model" / "model.ckd")
    whole = artifact.encode(teacher)[1].total / (directory / "model" / "model.ckd").stat().st_size
    found = factors(record.teacher["size"], final["size"])
    assert list(found) == ["student", "factorization", "bits", "coding"]
    assert prod(found.values()) == pytest.approx(whole, rel=1e-12)
    assert final["compression"]["file_bytes"] == pytest.approx(whole, rel=1e-12)
    dense = record.stage("distill")["size"]
    assert found["student"] == pytest.approx(record.teacher["size"]["file_bytes"] / dense["file_bytes"])
    assert found["factorization"] > 5
    assert found["bits"] > 2
    assert "times smaller = " in stages_table(record).caption
    assert stages_table(run_strategy("strategy=distill", "epochs=0")[0]).caption is None


def test_bf16_training_is_scored_as_the_model_is_used(run_strategy):
    """By a hand-written evaluation of what `load` gives, and by every stage's and the teacher's own figures."""
    record, directory = run_strategy("strategy=distill_then_compress", "rank=4", "precision=bf16", "epochs=2")
    (experiment,) = build_jobs(compose_jobs(["data=digits"]).jobs)
    data = experiment.data
    models = {stage["name"]: (directory / stage["checkpoint"], stage) for stage in record.stages}
    models["teacher"] = (Path(record.teacher["directory"]), record.teacher)
    models["final"] = (directory, record.stage(record.final))
    for path, entry in models.values():
        model = compresskd.load(path)
        for name in ("validation", "test"):
            split = getattr(data, name)
            pixels = split.pixels[split.rows].float() / 16
            with torch.inference_mode():
                logits = model((pixels - 0.3053) / 0.3760)
            assert entry["metrics"][f"{name}_accuracy"] == float(
                (logits.argmax(1) == split.targets).double().mean()
            )
            loss = float(torch.nn.functional.cross_entropy(logits, split.targets))
            assert entry["metrics"][f"{name}_loss"] == pytest.approx(loss, rel=1e-4)  # bfloat16: 1e-2
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    validated = [line["validation_accuracy"] for line in lines if line["stage"] == "distill"]
    assert max(validated) == record.stage("distill")["metrics"]["validation_accuracy"]
    verdict = evaluate_run(directory, record, data)
    assert verdict.value == verdict.recorded
