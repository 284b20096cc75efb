"""`plan`: what a command would do, and that it does nothing."""

import json

import pytest


@pytest.mark.slow
def test_the_plan_is_what_the_run_then_does(run_cli, work):
    words = ("strategy=distill_then_compress", "rank=4", "epochs=1", "teacher_fit.epochs=1", "data=digits")
    outcome = run_cli("plan", *words)
    assert outcome.status == 0, outcome.err
    assert not (work / "outputs").exists()
    steps = {line.split()[0]: line.split() for line in outcome.out.splitlines() if " MB" in line}
    assert list(steps) == ["distill", "factorize", "finetune"]
    assert run_cli(*words, "measure.latency=false", "hydra.run.dir=run").status == 0
    record = json.loads((work / "run" / "record.json").read_text())
    planned = {name: int(step[1].replace(",", "")) for name, step in steps.items()}
    sizes = {stage["name"]: stage["size"]["num_parameters"] for stage in record["stages"]}
    assert planned["distill"] == sizes["distill"]
    assert planned["finetune"] == pytest.approx(sizes["finetune"], rel=0.2)  # the search sees trained weights
    lines = (work / "run" / "metrics.jsonl").read_text().splitlines()
    updates = {row["stage"]: row["updates"] for row in map(json.loads, lines)}
    assert {name: int(steps[name][3]) for name in updates} == updates


def test_ranks_that_follow_from_weights_are_told_as_such(run_cli):
    outcome = run_cli("plan", "strategy=compress", "compress.budget=0.3", "data=digits")
    assert outcome.status == 0, outcome.err
    assert "as trained" in outcome.out


def test_a_plan_refuses_what_a_run_refuses(run_cli):
    outcome = run_cli("plan", "rank=0")
    assert outcome.status == 2
    assert "rank: got 0" in outcome.err
