"""Run directories of an earlier version load, resume, evaluate, export and compare; see stored_runs/README.md."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import compresskd
from compresskd import tt
from compresskd.config.build import resolved
from compresskd.config.compose import compose_jobs
from compresskd.config.origin import leaves
from compresskd.run.record import read_record

STORED = Path(__file__).parents[1] / "stored_runs"
FINISHED = ("quantized", "multi_stage", "features")


@pytest.fixture
def outputs(work):
    """A copy of the stored runs, as if they had been written in the folder that commands are run in."""
    folder = work / "outputs"
    shutil.copytree(STORED, folder, ignore=shutil.ignore_patterns("README.md"))
    for path in [*folder.rglob("*.json"), *folder.rglob("*.yaml")]:
        path.write_text(path.read_text().replace("@OUTPUTS@", str(folder)))
    return folder


@pytest.mark.parametrize("name", FINISHED)
def test_both_forms_of_the_model_load_and_are_equal(outputs, name):
    record = json.loads((outputs / name / "record.json").read_text())
    shape = record["config"]["data"]["input_shape"]
    models = [compresskd.load(path) for path in (outputs / name, outputs / name / "model" / "model.ckd")]
    assert any(isinstance(module, tt.TTLinear | tt.TTConv2d) for module in models[0].modules())
    x = torch.randn(5, *shape)
    with torch.no_grad():
        assert torch.equal(models[0](x), models[1](x))


@pytest.mark.parametrize("name", FINISHED)
def test_every_checkpoint_loads(outputs, name):
    checkpoints = sorted((outputs / name / "checkpoints").iterdir())
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        assert sum(p.numel() for p in compresskd.load(checkpoint).parameters()) > 300


@pytest.mark.parametrize("name", FINISHED)
def test_the_recorded_figure_is_reproduced(run_cli, outputs, name):
    outcome = run_cli("evaluate", f"outputs/{name}")
    assert (outcome.status, outcome.err) == (0, "")
    assert "reproduced" in outcome.out
    assert "NOT" not in outcome.out


@pytest.mark.slow
def test_an_interrupted_run_resumes(run_cli, outputs):
    before = (outputs / "interrupted" / "metrics.jsonl").read_text().splitlines()
    outcome = run_cli("resume", "outputs/interrupted")
    assert outcome.status == 0, outcome.err
    after = (outputs / "interrupted" / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before  # nothing is trained again
    assert len(after) == 6 + 400 + 6
    record = json.loads((outputs / "interrupted" / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["stages"][-1]["metrics"]["test_accuracy"] > 0.9
    assert len(list((outputs / "teachers").iterdir())) == 1  # the teacher is found, not trained again


@pytest.mark.slow
def test_they_are_compared_with_a_new_one(run_cli, outputs):
    overrides = json.loads((outputs / "quantized" / "record.json").read_text())["overrides"]
    then = "quant.batch_norm=freeze"  # what was the default
    assert (
        run_cli(*overrides, then, "seed=1", "measure.latency=false", "hydra.run.dir=outputs/new").status == 0
    )
    outcome = run_cli("compare", "outputs", "--json", "c.json")
    assert outcome.status == 0
    document = json.loads(Path("c.json").read_text())
    assert document["problems"] == []
    assert len(document["runs"]) == 6
    (group,) = (one for one in document["groups"] if one["num_counted"] == 2)
    assert sorted(group["runs"]) == ["new", "quantized"]
    assert len(list((outputs / "teachers").iterdir())) == 1  # the teacher is found, not trained again


def test_they_are_exported(run_cli, outputs):
    outcome = run_cli("export", "outputs/features", "--to", "dense", "--out", "dense")
    assert outcome.status == 0, outcome.err
    assert not [m for m in compresskd.load("dense").modules() if isinstance(m, tt.TTLinear | tt.TTConv2d)]


@pytest.mark.parametrize("name", [*FINISHED, "interrupted"])
def test_a_record_is_read_with_every_key_of_today(name):
    record = read_record(STORED / name)
    (job,) = compose_jobs(record.overrides).jobs
    then, now = dict(leaves(record.config)), dict(leaves(resolved(job.config)))
    missing = {key for key, value in now.items() if key not in then and value not in (None, False)}
    assert not missing, "compresskd/run/later.py has no value for them"
