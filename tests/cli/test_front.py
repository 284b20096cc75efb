"""A list of budgets is one run for each, from one table, compared with each other."""

import csv

import pytest
from refusals import fault, refused
from small_sweeps import SMALL, records

from compresskd.compression import compression

FRONT = (*SMALL[:-1], "teacher.hidden=[16]", "strategy=compress", "hydra.run.dir=run")


@pytest.mark.slow
def test_a_front_has_a_run_for_each_budget_from_one_calibration(run_cli, work, monkeypatch):
    calibrations, calibrate = [], compression.calibrate
    monkeypatch.setattr(
        compression,
        "calibrate",
        lambda *args, **options: calibrations.append(1) or calibrate(*args, **options),
    )
    outcome = run_cli(*FRONT, "compress.whitening=two_sided", "compress.budget=[0.8,0.5]")
    assert outcome.status == 0, outcome.err
    front = work / "run" / "front"
    found = records(front)
    assert sorted(found) == ["0.5", "0.8"]
    assert len(calibrations) == 1
    for name, record in found.items():
        (stage,) = record["stages"]
        assert record["config"]["compress"]["budget"] == float(name)
        assert f"compress.budget={name}" in record["overrides"]
        assert stage["size"]["num_parameters"] <= float(name) * record["teacher"]["size"]["num_parameters"]
        assert stage["calibration"]["damping"] == [1e-3, 1e-2]
        assert (front / name / "model" / "model.ckd").exists()
    with (front / "compare.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 2

    outcome = run_cli(*FRONT, "compress.whitening=two_sided", "compress.budget=[0.8,0.5]")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("is finished") == 2


@pytest.mark.parametrize(
    ("typed", "expected"),
    {
        "what trains": (
            ["strategy=compress_then_distill", "compress.budget=[0.5,0.2]"],
            fault("compress.budget", "[0.5, 0.2]", "write -m compress.budget=0.5,0.2"),
        ),
        "a sweep": (
            ["-m", "compress.budget=[0.5,0.2]", "seed=0,1"],
            fault("compress.budget", "[0.5, 0.2]", "one number", "-m compress.budget=0.5,0.2"),
        ),
        "equal budgets": (["compress.budget=[0.5,0.5]"], fault("compress.budget", "[0.5, 0.5]", "different")),
        "no budget": (["compress.budget=[]"], fault("compress.budget", "[]")),
        "one too large": (["compress.budget=[0.5,2]"], fault("compress.budget", "2", "< 1")),
        "one too small": (["compress.budget=[0.5,0.00001]"], fault("compress.budget", "1e-05")),
    }.values(),
    ids=["what trains", "a sweep", "equal budgets", "no budget", "one too large", "one too small"],
)
def test_what_cannot_be_a_front_is_refused(run_cli, typed, expected):
    refused(run_cli(*FRONT[:-1], *typed), expected)
