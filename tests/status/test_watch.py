"""Where runs stand, from their files alone; the list of runs that fit conditions."""

import json
import os
import socket
import subprocess
import sys

import pytest
from refusals import told
from small_sweeps import SMALL, failing

from compresskd.status.progress import Watched, find_runs
from compresskd.status.watch import duration

LOG = (
    "2026-11-29 07:28:05,100 stage 1/2: distill\n"
    "2026-11-29 07:28:05,123 epoch   1/4  loss 0.4461  train 19.61%  validation 30.77%  lr 0.002  22 samples/s  2.0 s\n"
    "2026-11-29 07:28:07,123 epoch   2/4  loss 0.4461  train 19.61%  validation 50.00%  lr 0.002  22 samples/s  4.0 s\n"
)
ROWS = [
    {"stage": "distill", "epoch": 0, "validation_accuracy": 0.6, "seconds": 2.0},
    {"stage": "distill", "epoch": 1, "validation_accuracy": 0.5, "seconds": 4.0},
]


@pytest.fixture
def running(tmp_path):
    """A run in the middle of its first of two stages, held by this process."""
    folder = tmp_path / "sweeps" / "x" / "rank=4"
    folder.mkdir(parents=True)
    stages = {
        "distill": {"epochs": 4},
        "finetune": {"epochs": 10},
        "quantize": {"_target_": "x.Quantize", "epochs": 5},
    }
    record = {
        "schema": 1, "strategy": "s", "seed": 0, "overrides": [], "status": "running", "stages": [], "created": "",
        "config": {"strategy": {"stages": stages}, "bits": None},
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "log.txt").write_text(LOG)
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in ROWS) + '{"stage": "dis'
    )  # torn
    (folder / "run.owner").write_text(f"process {os.getpid()} on {socket.gethostname()} since now")
    return folder


def changed(folder, **values):
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, **values}))


def test_progress_of_a_run_that_goes_on(running):
    watched = Watched(running)
    seen = watched.look()
    assert (seen.state, seen.stage, seen.number, seen.stages) == ("running", "distill", 1, 2)
    assert (seen.epoch, seen.epochs, seen.value, seen.best) == (2, 4, 0.5, 0.6)
    assert seen.seconds_left == (2 + 10) * 3.0  # of this stage and the next; nothing is quantized
    with (running / "metrics.jsonl").open("a") as file:
        file.write('till", "epoch": 2, "validation_accuracy": 0.7, "seconds": 3.0}\n')
    with (running / "log.txt").open("a") as file:
        file.write(LOG.splitlines()[2].replace("2/4", "3/4") + "\n")
    seen = watched.look()
    assert (seen.epoch, seen.value, seen.best) == (3, 0.7, 0.7)
    (running / "metrics.jsonl").write_text(f"{json.dumps(ROWS[0])}\n")  # as a resumed run cuts it
    assert watched.look().best == 0.6


def test_progress_while_the_teacher_trains(running):
    teacher = "".join(f"{line[:24]}teacher: {line[24:]}\n" for line in LOG.splitlines())
    (running / "log.txt").write_text(teacher)
    (running / "metrics.jsonl").unlink()
    seen = Watched(running).look()
    assert (seen.stage, seen.epoch, seen.epochs, seen.value) == ("teacher: distill", 2, 4, None)
    assert seen.seconds_left == 8.0


def test_states_that_no_record_says_of_itself(running):
    watched = Watched(running)
    (running / "run.owner").write_text("process 999999999 on " + socket.gethostname() + " since now")
    assert watched.look().state == "killed"
    (running / "record.json").write_text("{")
    seen = watched.look()
    assert seen.state == "damaged"
    assert "cannot be read" in seen.note
    (running / "record.json").unlink()
    assert watched.look() is None


def test_a_look_changes_nothing_and_skips_what_has_ended(running, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in running.rglob("*")}
    changed(running, status="failed", error={"type": "ValueError", "message": "no", "traceback": ""})
    watched, before = Watched(running), {path: path.stat().st_mtime_ns for path in running.rglob("*")}
    assert watched.look().note == "ValueError: no"
    monkeypatch.setattr("compresskd.status.progress.read_record", None)
    assert watched.look().state == "failed"
    assert {path: path.stat().st_mtime_ns for path in running.rglob("*")} == before


def test_runs_are_found_where_a_folder_is_not_there_yet(running, tmp_path):
    known = {}
    assert find_runs([tmp_path / "nowhere"], known) == []
    (first,) = find_runs([tmp_path, running], known)
    assert find_runs([tmp_path], known) == [first]
    assert list(known) == [running]


def test_durations():
    assert [duration(s) for s in (4.2, 59, 60, 3570, 12000)] == [
        "4 s",
        "59 s",
        "1 min",
        "1 h 00 min",
        "3 h 20 min",
    ]


def test_watch_once_shows_those_that_go_on_and_fail_first(run_cli, running, work):
    other = running.parent / "rank=8"
    other.mkdir()
    for path in running.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    changed(other, status="failed", error={"type": "ValueError", "message": "it\nfailed", "traceback": ""})
    outcome = run_cli("watch", str(running.parent), "--once")
    assert outcome.status == 0
    head, first, second, last = outcome.out.splitlines()
    assert head.split() == ["run", "state", "stage", "epoch", "metric", "best", "left"]
    assert first.split() == ["rank=4", "running", "1/2", "distill", "2/4", "50.00%", "60.00%", "36", "s"]
    assert second.startswith("rank=8  failed")
    assert "ValueError: it failed" in second
    assert last == "2 runs: 1 running, 1 failed"
    assert run_cli("watch", "nowhere").status == 1


def test_a_run_as_it_is_written_is_read(run_cli, work):
    assert run_cli(*SMALL, "epochs=3", "hydra.run.dir=run").status == 0
    changed(work / "run", status="interrupted", stages=[], final=None)
    seen = Watched(work / "run").look()
    assert (seen.state, seen.stage, seen.number, seen.stages) == ("interrupted", "distill", 1, 1)
    assert (seen.epoch, seen.epochs) == (3, 3)
    assert seen.best is not None


@pytest.mark.slow
def test_ls_lists_what_fits(run_cli, work):
    assert run_cli("-m", *failing(work)).status == 1
    assert run_cli("-m", *SMALL, "rank=2,4", "seed=0,1", "strategy=compress").status == 0
    outcome = run_cli("ls")
    assert outcome.status == 0
    assert outcome.out.startswith("7 of 7 runs")

    def count(*words):
        outcome = run_cli("ls", "outputs", "--paths", *words)
        assert outcome.status == (0 if outcome.out else 1), outcome.err
        return len(outcome.out.splitlines())

    assert count("--failed") == 1
    assert count("--finished", "--where", "strategy=compress") == 4
    assert count("--where", "rank<=2", "--where", "seed=1", "--where", "strategy=compress") == 1
    assert count("--where", "strategy=compress,train") == 5
    assert count("--where", "strategy!=compress") == 3
    assert count("--where", "student.fails=true") == 1
    assert count("--where", "file_bytes>0") == 6
    assert count("--where", "rank>100") == 0
    assert count("--limit", "3") == 3
    told(run_cli("ls", "--where", "rnk=2"), "--where: no record has 'rnk'; did you mean rank")
    told(run_cli("ls", "--where", "rank<=x"), "expected a number behind <=")
    told(run_cli("ls", "--where", "rank"), "expected KEY=VALUE")
    sizes = run_cli("ls", "--sort", "file_bytes", "--paths", "--where", "strategy=compress").out.splitlines()
    assert (
        sizes
        == run_cli(
            "ls", "--sort", "file_bytes", "--reverse", "--paths", "--where", "strategy=compress"
        ).out.splitlines()[::-1]
        or len(sizes) == 4
    )


@pytest.mark.parametrize(
    "module", ["compresskd.status.watch", "compresskd.status.listing", "compresskd.cli.completion"]
)
def test_nothing_heavy_is_loaded(module):
    code = f"import sys, {module}; print(*[m for m in ('torch', 'hydra', 'omegaconf') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""


def test_the_report_is_written_while_a_sweep_goes_on(run_cli, running, work):
    outcome = run_cli("compare", str(running.parent), "--html", "report.html")
    assert outcome.status == 0, outcome.err
    assert "1 record (1 running)" in outcome.out
    assert "1 running" in (work / "report.html").read_text()
