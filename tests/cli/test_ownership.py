"""Nothing is written into, or deleted from, a folder that is not ours; what is taken away from a run stops it."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from compresskd.listeners.console import Reporter

pytestmark = pytest.mark.slow

RUN = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=128", "data.num_test=64", "student.hidden=[16]", "teacher.hidden=[16]",
    "epochs=2", "teacher_fit.epochs=1", "rank=3", "strategy=distill",
)  # fmt: skip


def contents(folder):
    """Everything below a folder: links as where they lead, files as their bytes."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def mine(folder, names=("model/weights.bin", "checkpoints/epoch1/model.safetensors", "config.yaml")):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return contents(folder)


FOREIGN = {
    "a project": ("model/weights.bin", "checkpoints/epoch1/model.safetensors", "config.yaml"),
    "a checkpoint": ("checkpoints/training.ckpt",),
    "a log": ("log.txt",),
    "metrics": ("metrics.jsonl",),
    "a lock with content": ("run.lock", "notes.md"),
    "hidden": (".git/config",),
}


@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_of_the_user_s_is_refused_untouched(run_cli, work, names):
    before = mine(work / "fr", names)
    outcome = run_cli(*RUN, "hydra.run.dir=fr")
    assert (outcome.status, outcome.left) == (2, [])
    assert "is not empty and is no run of compresskd" in outcome.err
    assert contents(work / "fr") == before


@pytest.mark.parametrize("text", ["{}", '{"strategy": "x"}', "[1]", "no json", '{"results": 1}'])
def test_a_record_of_somebody_else_is_refused_untouched(run_cli, work, text):
    mine(work / "fr")
    (work / "fr" / "record.json").write_text(text)
    before = contents(work / "fr")
    outcome = run_cli(*RUN, "hydra.run.dir=fr")
    assert outcome.status == 2
    assert "record.json cannot be read" in outcome.err
    assert contents(work / "fr") == before


def test_a_folder_that_only_hydra_can_tell_is_refused_too(run_cli, work):
    before = mine(work / "fr_3")
    outcome = run_cli(*RUN, "hydra.run.dir=fr_${rank}")
    assert outcome.status == 2
    assert contents(work / "fr_3") == before


def test_a_teacher_s_folder_and_a_job_s_folder_are_refused_too(run_cli, work):
    assert run_cli(*RUN, "hydra.run.dir=a").status == 0
    (teacher,) = (work / "outputs" / "teachers").iterdir()
    shutil.rmtree(teacher)
    before = mine(teacher)
    outcome = run_cli(*RUN, "hydra.run.dir=b")
    assert outcome.status == 2
    assert f"{teacher.name} is not empty and is no run" in outcome.err
    assert contents(teacher) == before
    shutil.rmtree(teacher)
    before = mine(work / "sweep" / "0")
    (work / "sweep" / "multirun.yaml").write_text("hydra: {help: {app_name: compresskd}}")
    outcome = run_cli(
        "-m", *RUN, "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir='${hydra.job.num}'"
    )
    assert outcome.status == 1  # the other job goes on
    assert "0 is not empty and is no run" in outcome.err
    assert contents(work / "sweep" / "0") == before
    assert json.loads((work / "sweep" / "1" / "record.json").read_text())["status"] == "finished"


def test_a_sweep_s_folder_is_a_sweep_s(run_cli, work):
    before = mine(work / "fr", ("multirun.yaml", "notes.md"))
    sweep = ("-m", *RUN, "seed=0,1", "hydra.sweep.dir=fr")
    outcome = run_cli(*sweep)
    assert outcome.status == 2
    assert "is not empty and is no sweep of compresskd" in outcome.err
    assert contents(work / "fr") == before
    shutil.rmtree(work / "fr")
    assert run_cli(*sweep).status == 0
    again = run_cli(*sweep)  # its own folder is known again, by what Hydra wrote and by its runs
    assert again.status == 0
    assert "is finished" in again.out
    (work / "fr" / "multirun.yaml").unlink()
    assert run_cli(*sweep).status == 0


def test_what_a_run_leaves_that_was_killed_before_its_record_can_be_started_again(run_cli, work):
    (work / "run" / ".hydra").mkdir(parents=True)
    for name in ("run.lock", "compresskd.log", ".record.json.0a1b.compresskd-tmp"):
        (work / "run" / name).touch()
    (work / "run" / "run.owner").write_text("process 1 on here since then")
    assert run_cli(*RUN, "hydra.run.dir=run").status == 0


def interrupted(run_cli, work):
    """A run that has a record, and a teacher, and no more."""
    assert run_cli(*RUN, "hydra.run.dir=run").status == 0
    shutil.rmtree(work / "run" / "model")
    path = work / "run" / "record.json"
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(record | {"status": "interrupted", "stages": [], "final": None, "model": None})
    )
    shutil.rmtree(work / "run" / "checkpoints")
    return work / "run"


LINKS = [
    "metrics.jsonl", "log.txt", "predictions.npz", "config.yaml", "overrides.yaml", "run.lock", "run.owner",
    "checkpoints", "model", "record.json",
]  # fmt: skip


def test_links_and_special_files_are_not_followed(run_cli, work):
    """For everything that a run writes: to something, to nothing, and a pipe in its place."""
    run = interrupted(run_cli, work)
    away = work / "away"
    (away / "checkpoints").mkdir(parents=True)
    (away / "model").mkdir()
    mine(away, [*(n for n in LINKS if "." in n), "model/model.ckd", "checkpoints/training.ckpt"])
    shutil.copy(run / "record.json", away / "record.json")
    before = contents(away)
    for name in LINKS:
        kept = (run / name).rename(work / "kept") if (run / name).exists() else None
        for lead_to in (away / name, work / "nowhere", None):
            if lead_to is None:
                os.mkfifo(run / name)
            else:
                (run / name).symlink_to(lead_to)
            outcome = (
                run_cli("resume", "run") if name == "record.json" else run_cli(*RUN, "hydra.run.dir=run")
            )
            assert outcome.status == 2, (name, lead_to, outcome.err)
            assert f"run/{name}" in outcome.err
            (run / name).unlink()
            assert contents(away) == before, name
            assert not (work / "nowhere").exists()
        if kept is not None:
            kept.rename(run / name)
    assert run_cli("resume", "run").status == 0


def test_a_copy_by_hard_links_stays_as_it_is(run_cli, work):
    """`cp -al` keeps a run cheaply; what goes on in one must not grow the other."""
    run = interrupted(run_cli, work)
    shutil.copytree(run, work / "copy", copy_function=os.link)
    (run / "run.lock").unlink(missing_ok=True)
    (work / "copy" / "run.lock").unlink(missing_ok=True)
    before = contents(work / "copy")
    assert run_cli("resume", "run").status == 0
    assert contents(work / "copy") == before


TAKEN = {
    "lock removed": (lambda run: (run / "run.lock").unlink(), "run.lock in it was removed or replaced"),
    "lock replaced": (
        lambda run: ((run / "run.lock").unlink(), (run / "run.lock").touch()), "run.lock in it was removed or replaced",
    ),
    "folder removed": (shutil.rmtree, "it was removed while the run was going on"),
    "folder moved": (lambda run: run.rename(run.with_name("moved")), "it was removed while the run was going on"),
}  # fmt: skip


@pytest.mark.parametrize(("take", "words"), TAKEN.values(), ids=TAKEN)
def test_what_is_taken_away_in_mid_run_stops_it(run_cli, work, monkeypatch, take, words):
    run, taken, before = work / "run", [], {}

    def epoch(self, record, epochs):
        if (run / "metrics.jsonl").exists() and not taken:
            taken.append(True)
            before.update(contents(run))
            take(run)

    monkeypatch.setattr(Reporter, "epoch", epoch)
    outcome = run_cli(*RUN, "hydra.run.dir=run")
    assert taken
    assert outcome.status == 1
    assert words in outcome.err
    assert "everything is in" not in outcome.out
    if words.startswith("it was"):
        assert not run.exists()
    else:
        now = contents(run)
        assert {k: now[k] for k in ("record.json", "metrics.jsonl")} == {
            k: before[k] for k in ("record.json", "metrics.jsonl")
        }
        (run / "run.lock").unlink(missing_ok=True)
        assert run_cli("resume", "run").status == 0
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [0, 1]  # none is counted twice


def test_a_record_is_always_valid_json(run_cli, work, monkeypatch):
    from compresskd import measure

    def latency(models, example, **options):
        return {name: {"batch_1": 1.0, "batch_32": 1.0, "batch_9": float("nan")} for name in models}

    monkeypatch.setattr(measure, "latency", latency)
    assert run_cli(*RUN, "measure.latency=true", "hydra.run.dir=run").status == 0
    text = Path("run/record.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["stages"][0]["latency_ms"]["batch_9"] is None


OWN_NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.last = nn.Linear(64, num_classes)

    def forward(self, x):
        return {sign} self.last(x.flatten(1))
"""


def test_a_teacher_whose_code_was_changed_is_another_teacher(run_cli, work, monkeypatch):
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # which tells versions of one second apart by nothing
    own = (
        "teacher=custom",
        "teacher._target_=own_net.Net",
        "+teacher.input_shape=[1,8,8]",
    )
    arguments = (
        "data=synthetic",
        "measure.latency=false",
        "data.num_train=64",
        "student.hidden=[8]",
        "epochs=1",
        "strategy=distill",
    )
    for number, sign in enumerate(("+", "-"), 1):
        (work / "own_net.py").write_text(OWN_NET.format(sign=sign))
        sys.modules.pop("own_net", None)
        outcome = run_cli(*arguments, *own, f"hydra.run.dir=run_{number}")
        assert outcome.status == 0, outcome.err
        assert len(list((work / "outputs" / "teachers").iterdir())) == number
