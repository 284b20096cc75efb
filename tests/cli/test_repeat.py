"""`compresskd repeat DIR`: the same configuration again, from scratch, and what is equal."""

import json
import shutil

import numpy as np
import pytest

from compresskd.reports.repeat import compare_runs, surroundings
from compresskd.run import read_record

pytestmark = pytest.mark.slow

TINY = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=96", "data.num_test=48", "data.input_shape=[1,6,6]", "epochs=2", "rank=4",
    "teacher_fit.epochs=2", "teacher.hidden=[24,24]", "student.hidden=[16,16]", "hydra.run.dir=run",
)  # fmt: skip
ROWS = ("status", "data", "teacher", "metrics", "ranks", "plans", "sizes", "other details", "epochs", "predictions",
        "model/model.ckd")  # fmt: skip


@pytest.fixture
def run(run_cli, work):
    outcome = run_cli(*TINY)
    assert outcome.status == 0, outcome.err
    return work / "run"


def change_record(directory, change):
    record = json.loads((directory / "record.json").read_text())
    change(record)
    (directory / "record.json").write_text(json.dumps(record))


def test_a_run_is_repeated_with_a_teacher_of_its_own(run_cli, work, run):
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    outcome = run_cli("repeat", "run")
    assert outcome.status == 0, outcome.out
    assert "all is equal, bit for bit" in outcome.out
    for row in ROWS:
        assert f"│ {row} " in outcome.out
    again = work / "run_repeat"
    (teacher,) = (again / "teachers").iterdir()
    assert json.loads((teacher / "record.json").read_text())["status"] == "finished"
    assert read_record(again).teacher["source"] == "trained"  # type: ignore[index]
    assert (again / "model" / "model.ckd").read_bytes() == (run / "model" / "model.ckd").read_bytes()
    assert all(path.read_bytes() == content for path, content in before.items())
    # once more: beside the first repetition, and where the user says
    assert run_cli("repeat", "run").status == 0
    assert (work / "run_repeat_2" / "record.json").exists()
    assert run_cli("repeat", "run", "--into", "here").status == 0
    assert (work / "here" / "record.json").exists()
    # a repetition is a run, and so is a teacher
    assert run_cli("repeat", "run_repeat", "--into", "third").status == 0
    assert run_cli("repeat", str(teacher), "--into", "fourth").status == 0


SPOILT = (
        ("model/model.ckd", lambda run: (run / "model" / "model.ckd").write_bytes(b"other")),
        ("model/model.ckd", lambda run: (run / "model" / "model.ckd").unlink()),
        ("predictions", lambda run: np.savez(run / "predictions.npz", targets=np.zeros(48))),
        ("epochs", lambda run: (run / "metrics.jsonl").write_text(
            "".join((run / "metrics.jsonl").read_text().splitlines(keepends=True)[1:]))),
        ("epochs", lambda run: (run / "metrics.jsonl").write_text(
            (run / "metrics.jsonl").read_text().replace('"train_loss": ', '"train_loss": 1'))),
        ("teacher", lambda run: change_record(run, lambda r: r["teacher"].update(fingerprint="other"))),
        ("metrics", lambda run: change_record(run, lambda r: r["stages"][-1]["metrics"].update(test_loss=0.5))),
        ("ranks", lambda run: change_record(run, lambda r: r["stages"][1]["layers"]["fc1"].update(ranks=[9]))),
        ("plans", lambda run: change_record(run, lambda r: r["stages"][1]["plans"].update(source="measured"))),
        ("sizes", lambda run: change_record(run, lambda r: r["stages"][0]["size"].update(macs=1))),
        ("other details", lambda run: change_record(run, lambda r: r["stages"][0].update(best_epoch=7))),
        ("other details", lambda run: change_record(run, lambda r: r["stages"].pop())),
        ("status", lambda run: change_record(run, lambda r: r.update(status="failed"))),
        ("data", lambda run: change_record(run, lambda r: r["data"].update(num_train=1))),
        ("other details", lambda run: change_record(
            run, lambda r: r["stages"][0]["teacher_outputs"]["original"].update(num_computed=1))),
)  # fmt: skip


def test_each_comparison_can_fail(work, run):
    for number, (what, spoil) in enumerate(SPOILT):
        other = work / f"other{number}"
        shutil.copytree(run, other)
        assert [row.what for row in compare_runs(run, other)] == list(ROWS)
        assert all(row.equal for row in compare_runs(run, other))
        spoil(other)
        assert what in [row.what for row in compare_runs(run, other) if not row.equal]
    assert {what for what, _ in SPOILT} == set(ROWS)


def test_times_are_free(work, run):
    shutil.copytree(run, work / "other")

    def later(record):
        record["created"], record["wall_seconds"], record["resumed"] = "2099", 9.0, [{"at": "2099"}]
        for stage in record["stages"]:
            stage["seconds"], stage["latency_ms"] = 99.0, {"batch_1": 99.0, "batch_32": 99.0}
        record["teacher"] |= {
            "source": "reused",
            "directory": "/elsewhere",
            "latency_ms": {"batch_1": 99.0, "batch_32": 99.0},
        }

    change_record(work / "other", later)
    assert all(row.equal for row in compare_runs(run, work / "other"))


def test_an_inequality_is_named_with_what_else_changed(run_cli, run):
    def older(record):
        record["versions"]["torch"] = "2.12"
        record["hardware"]["num_threads"] = 77
        record["stages"][-1]["metrics"]["test_loss"] += 1e-9

    change_record(run, older)
    outcome = run_cli("repeat", "run")
    assert outcome.status == 1
    assert "does not repeat" in outcome.out
    assert "metrics" in outcome.out
    assert "made with torch 2.12, now " in outcome.out
    assert "made with num_threads 77, now 1: bit equality is not promised" in outcome.out


def test_measured_plans_are_named(run_cli, work):
    assert run_cli(*TINY, "tt.plan=measured").status == 0
    record = read_record(work / "run")
    assert record.stages[-1]["plans"]["source"] == "measured"
    (reason,) = surroundings(record, record)
    assert reason.startswith("made with tt.plan=measured")


def test_given_weights_are_not_trained_again(run_cli, work, run):
    (teacher,) = (work / "outputs" / "teachers").iterdir()
    weights = f"teacher.weights={teacher / 'checkpoints' / 'train' / 'model.safetensors'}"
    outcome = run_cli(
        *[a for a in TINY if not a.startswith(("hydra", "teacher_fit"))], weights, "hydra.run.dir=given"
    )
    assert outcome.status == 0, outcome.err
    outcome = run_cli("repeat", "given")
    assert outcome.status == 0, outcome.out + outcome.err
    assert not (work / "given_repeat" / "teachers").exists()


def test_ladders_and_jobs_of_a_sweep_are_repeated(run_cli, work):
    base = [a for a in TINY if not a.startswith(("hydra", "rank"))]
    ladder = ("strategy=multi_stage", "rank_schedule.num_stages=2", "rank=2,3")
    outcome = run_cli("-m", *base, *ladder, "hydra.sweep.dir=sweep")
    assert outcome.status == 0, outcome.err
    outcome = run_cli("repeat", "sweep/rank=2")
    assert outcome.status == 0, outcome.out + outcome.err
    assert (work / "sweep" / "rank=2_repeat" / "record.json").exists()


def test_what_cannot_be_repeated_is_refused_before_anything_is_made(run_cli, work, run):
    (work / "taken").mkdir()
    (work / "dangling").symlink_to(work / "nowhere")
    assert run_cli("repeat", "nowhere").status == 2
    for into in ("taken", "dangling", "run"):
        outcome = run_cli("repeat", "run", "--into", into)
        assert (outcome.status, outcome.left) == (2, [])
        assert "is there already" in outcome.err
    for words in ([], ["run", "rank=3"], ["run", "--into"], ["--into", "there"]):
        outcome = run_cli("repeat", *words)
        assert (outcome.status, outcome.left) == (2, [])
        assert outcome.err.startswith("usage: compresskd repeat ")
    assert run_cli("repeat", "--help").status == 0

    change_record(run, lambda record: record["data"].update(fingerprint="another"))
    outcome = run_cli("repeat", "run")
    assert (outcome.status, outcome.left) == (2, [])
    assert "other data (fingerprint another then" in outcome.err
    change_record(run, lambda record: record.update(status="interrupted"))
    outcome = run_cli("repeat", "run")
    assert (outcome.status, outcome.left) == (2, [])
    assert "resume it by: compresskd resume run" in outcome.err
