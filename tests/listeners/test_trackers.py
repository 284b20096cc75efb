"""Trackers: what they get, what they have already, and that nothing of theirs ends a run."""

import json
import shutil
from pathlib import Path

import pytest
from programs import Program
from refusals import fault, refused
from small_sweeps import SMALL, failing, records, sweep_folder
from stores import of_mlflow, of_tensorboard, of_wandb

from compresskd.listeners import tracker as trackers
from compresskd.listeners.mlflow import MLflow
from compresskd.listeners.tensorboard import TensorBoard
from compresskd.listeners.wandb import WandB
from compresskd.options import OptionError
from compresskd.run import read_metrics, read_record

PROJECT = Path(__file__).parents[1] / "cli" / "my_project"
ALL = "tracker=[tensorboard,mlflow,wandb]"
OWN = ("--config-dir", "my_conf", "tracker=curves")


@pytest.fixture
def project(work):
    shutil.copytree(PROJECT, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return work


@pytest.fixture
def clients():
    for name in ("tensorboard", "mlflow", "sqlalchemy", "wandb"):
        pytest.importorskip(name, reason="pip install 'compresskd[trackers]'")


def curve(folder):
    """{name: [(step, value), ...]} of the tracker of docs/extending.md."""
    found = {}
    for line in (folder / "curves.csv").read_text().splitlines():
        step, name, value = line.split(",")
        found.setdefault(name, []).append((int(step), float(value)))
    return found


def expected_epochs(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    names = {}
    for line in lines:
        names.setdefault(f"{line['stage']}/validation_accuracy", []).append(line["epoch"])
    return names


@pytest.mark.slow
def test_an_own_tracker_gets_every_epoch_and_result(run_cli, project):
    outcome = run_cli(*OWN, *SMALL, "epochs=3", "hydra.run.dir=run")
    assert outcome.status == 0, outcome.err
    found, run = curve(project / "run"), read_record(project / "run")
    lines = read_metrics(project / "run" / "metrics.jsonl")
    shown = [(line["epoch"], line["validation_accuracy"]) for line in lines]
    assert found["distill/validation_accuracy"] == shown
    assert [step for step, _ in found["teacher/train_loss"]] == [0]
    assert {"distill/terms/cross_entropy", "distill/lr"} <= set(found)
    entry = run.stages[-1]
    for prefix in ("distill/final", "final"):
        assert found[f"{prefix}/file_bytes"] == [(0, entry["size"]["file_bytes"])]
        assert found[f"{prefix}/test_accuracy"] == [(0, entry["metrics"]["test_accuracy"])]
    assert len(found["teacher/final/test_accuracy"]) == 1
    assert json.loads((project / "run" / "trackers.json").read_text()) == {"curves": "curves.csv"}


@pytest.mark.slow
def test_a_resumed_run_leaves_no_gap_and_sends_no_point_twice(run_cli, project):
    typed = (*OWN, *SMALL, "epochs=4", "hydra.run.dir=run")
    assert run_cli(*typed).status == 0
    run = project / "run"
    whole, record = curve(run), json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(
        json.dumps({**record, "status": "interrupted", "stages": [], "final": None})
    )
    kept = [
        line
        for line in (run / "curves.csv").read_text().splitlines()
        if not line.startswith(("2,", "0,final"))
    ]
    (run / "curves.csv").write_text("".join(f"{line}\n" for line in kept))  # a gap at an epoch
    assert run_cli("resume", "run").status == 0
    again = curve(run)
    times = ("seconds", "samples_per_second")
    assert {k: sorted(v) for k, v in again.items() if not k.endswith(times)} == {
        k: sorted(v) for k, v in whole.items() if not k.endswith(times)
    }
    assert {k: len(v) for k, v in again.items()} == {k: len(v) for k, v in whole.items()}


@pytest.mark.slow
def test_track_sends_a_sweep_that_has_finished_and_nothing_twice(run_cli, project):
    assert run_cli("-m", *SMALL, "seed=0,1", "epochs=2").status == 0
    folder = sweep_folder(project)
    for _ in range(2):
        outcome = run_cli("track", str(folder), "--to", "curves", "--config-dir", "my_conf")
        assert outcome.status == 0, outcome.err
        assert "2 of 2 runs are in curves" in outcome.out
        for name in records(folder):
            steps = {n: [step for step, _ in points] for n, points in curve(folder / name).items()}
            assert {n: steps[n] for n in expected_epochs(folder / name)} == expected_epochs(folder / name)
            assert steps["final/file_bytes"] == [0]
    first, second = (curve(folder / name) for name in ("seed=0", "seed=1"))
    assert "teacher/train_loss" in first  # whose job trained it
    assert "teacher/train_loss" not in second


@pytest.mark.slow
def test_a_tracker_that_fails_is_told_once_and_ends_nothing(run_cli, project):
    path = project / "my_tracker.py"
    path.write_text(
        path.read_text().replace("        with self.path", "        1 / (step != 1)\n        with self.path")
    )
    outcome = run_cli(*OWN, *SMALL, "epochs=4", "hydra.run.dir=run")
    assert outcome.status == 0, outcome.err
    said = (project / "run" / "log.txt").read_text()
    assert said.count("tracker curves: ZeroDivisionError") == 1
    assert f"compresskd track {project / 'run'} --to curves" in said
    assert [step for step, _ in curve(project / "run")["distill/train_loss"]] == [0]
    failed = run_cli("track", "run", "--to", "curves", "--config-dir", "my_conf")
    assert failed.status == 1
    assert "tracker curves: ZeroDivisionError" in failed.err


@pytest.mark.slow
def test_a_resumed_run_and_a_sweep_may_be_followed_anew(run_cli, project):
    assert run_cli("-m", *SMALL, "seed=0,1").status == 0
    folder = sweep_folder(project)
    outcome = run_cli("-m", *OWN, *SMALL, "seed=0,1")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("skipped: ") == 2
    assert sweep_folder(project) == folder


@pytest.mark.slow
def test_compare_does_not_tell_runs_apart_by_who_follows_them(run_cli, project):
    assert run_cli(*OWN, *SMALL, "hydra.run.dir=runs/a").status == 0
    assert run_cli(*SMALL, "seed=1", "hydra.run.dir=runs/b").status == 0
    outcome = run_cli("compare", "runs")
    assert "2 records (2 finished) in 1 group" in outcome.out
    assert "tracker" not in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["tracker=tensorbord"], fault("tracker", "got tensorbord", "did you mean tensorboard")),
        (["tracker=[mlflow,wandbb]"], fault("tracker", "wandbb", "did you mean wandb")),
        (
            ["tracker=mlflow", "tracker.mlflow.urri=x"],
            fault("tracker.mlflow.urri", "did you mean tracker.mlflow.uri"),
        ),
        (
            ["tracker=wandb", "tracker.wandb.mode=on"],
            fault("tracker.wandb.mode", "got 'on'", "offline, online"),
        ),
        (["tracker=mlflow", "tracker.mlflow.uri=http://localhost:1"], fault("tracker.mlflow.uri", "server")),
        (
            ["tracker=mlflow", "tracker.mlflow.max_model_bytes=-1"],
            fault("tracker.mlflow.max_model_bytes", ">= 0"),
        ),
        (["+tracker.x=3"], fault("tracker.x", "got 3", "tracker=NAME")),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_runs(run_cli, clients, typed, said):
    refused(run_cli(*SMALL, *typed), said)


@pytest.mark.slow
def test_an_unusable_store_is_refused(run_cli, work, clients):
    (work / "file").write_text("no database, and no folder: " * 9)
    for typed, key in (
        (("tracker=mlflow", "tracker.mlflow.uri=sqlite:///file"), "tracker.mlflow.uri"),
        (("tracker=tensorboard", "tracker.tensorboard.directory=file/x"), "tracker.tensorboard.directory"),
        (("tracker=wandb", "tracker.wandb.directory=file"), "tracker.wandb.directory"),
    ):
        refused(run_cli(*SMALL, *typed), fault(key, "file"))


@pytest.mark.parametrize(
    "tracker", [TensorBoard(), MLflow(), WandB()], ids=["tensorboard", "mlflow", "wandb"]
)
def test_a_missing_package_is_named_with_what_to_install(tracker, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(trackers, "import_module", missing)
    with pytest.raises(OptionError, match=r"compresskd\[trackers\]"):
        tracker.check(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_track_refuses_what_is_no_run_and_no_option_of_a_tracker(run_cli, project):
    typed = ("--to", "curves", "--config-dir", "my_conf")
    refused(run_cli("track", "nowhere", *typed), "nowhere does not exist")
    assert run_cli(*SMALL, "hydra.run.dir=run").status == 0
    refused(run_cli("track", "run", *typed, "rank=3"), fault("rank=3", "tracker.NAME.KEY=VALUE"))
    refused(
        run_cli("track", "run", "--to", "curvs", "--config-dir", "my_conf"),
        fault("tracker", "did you mean curves"),
    )


@pytest.mark.slow
def test_the_three_read_back_in_a_sweep_with_a_failing_job(run_cli, work, clients):
    outcome = run_cli("-m", *failing(work), ALL)
    assert outcome.status == 1
    folder, outputs = sweep_folder(work), work / "outputs"
    named = {f"sweeps/{folder.name}/{name}": name for name in records(folder)}
    assert len(named) == 2
    stored, offline = of_mlflow(outputs / "mlflow.db"), of_wandb(outputs)
    assert {name: each["status"] for name, each in stored.items()} == {
        name: "FAILED" if name.endswith("True") else "FINISHED" for name in named
    }
    for name, job in named.items():
        has_epochs = (folder / job / "metrics.jsonl").exists()
        model = {"model.ckd"} if stored[name]["status"] == "FINISHED" else set()
        assert set(stored[name]["files"]) == {
            "results.md",
            *(["metrics.jsonl"] if has_epochs else []),
            *model,
        }
        assert stored[name]["parameters"]["student.fails"] == ("true" if job.endswith("True") else "false")
        identities = json.loads((folder / job / "trackers.json").read_text())
        events = of_tensorboard(folder / job / "tensorboard")
        epochs = expected_epochs(folder / job) if has_epochs else {}
        for points in (stored[name]["points"], events, offline[identities["wandb"]]):
            assert {n: points[n] for n in epochs} == epochs
    assert len(offline) == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_tracker_runs(run_cli, work, clients, monkeypatch):
    monkeypatch.delenv(
        "WANDB_SERVICE", raising=False
    )  # wandb's helper of this process, which outlives the kill
    typed = (*SMALL, "epochs=60", "train.checkpoint_seconds=0.005", "hydra.run.dir=run", ALL)
    run = work / "run"

    def far_enough():
        path = run / "metrics.jsonl"
        return path.exists() and path.read_text().count("\n") >= 7

    killed = Program(typed, work.parent, work)
    try:
        assert killed.wait_for(far_enough), killed.text
    finally:
        killed.kill()
    before = json.loads((run / "trackers.json").read_text())
    assert set(before) == {"tensorboard", "mlflow", "wandb"}
    assert run_cli("resume", "run").status == 0
    assert json.loads((run / "trackers.json").read_text()) == before
    epochs = expected_epochs(run)
    (stored,) = of_mlflow(work / "outputs" / "mlflow.db").values()
    offline = of_wandb(work / "outputs")
    assert list(offline) == [before["wandb"]]
    for points in (stored["points"], of_tensorboard(run / "tensorboard"), offline[before["wandb"]]):
        assert {name: points[name] for name in epochs} == epochs
        assert points["final/file_bytes"] in ([0], [0.0])
    assert stored["status"] == "FINISHED"
