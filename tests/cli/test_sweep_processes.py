"""Sweeps in processes of their own: killed, interrupted, several at once, run by every launcher."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import Program
from small_sweeps import SMALL, failing, records, sweep_folder

import compresskd

TIMES = {
    "seconds",
    "train_seconds",
    "samples_per_second",
    "latency_ms",
    "latency_ms_beside",
    "teacher_outputs",
}


@pytest.fixture
def program(work):
    """program('-m', ...) -> a running command line; what still runs when the test ends is ended."""
    started = []

    def start(*arguments):
        started.append(Program(arguments, work.parent, work))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def launched(work):
    """launched('-m', ..., NAME='value') -> a command line that starts workers, run by an interpreter of its own."""
    started = []

    def start(*arguments, **environment):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
        environment["PYTHONPATH"] = str(Path(compresskd.__file__).parents[1])
        output = work.parent / f"output-{len(started)}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "compresskd", *arguments],
                env={k: v for k, v in environment.items() if v},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.said = output.read_text
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def untimed(value):
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in TIMES}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def results(folder):
    """What must not depend on when and in how many goes a run was made: metrics and weights."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    record = json.loads((folder / "record.json").read_text())
    weights = {p.parent.name: p.read_bytes() for p in sorted(folder.glob("checkpoints/*/model.safetensors"))}
    assert weights
    return {
        "status": record["status"],
        "metrics": [untimed(json.loads(line)) for line in lines],
        "stages": untimed(record["stages"]),
        "weights": weights,
    }


LONGER = (*SMALL, "epochs=40", "train.checkpoint_seconds=0.005")


def finished(folder):
    return [name for name, record in records(folder).items() if record["status"] == "finished"]


def in_the_middle_of_job(work, number):
    """Whether `number` jobs of the only sweep are finished and the next one has trained for some epochs."""

    def there():
        folders = list((work / "outputs" / "sweeps").glob("*"))
        if not folders or len(finished(folders[0])) < number:
            return False
        running = [name for name, record in records(folders[0]).items() if record["status"] == "running"]
        lines = [folders[0] / name / "metrics.jsonl" for name in running]
        return any(path.exists() and path.read_text().count("\n") >= 5 for path in lines)

    return there


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_as_an_undisturbed_one(run_cli, program, work):
    command = ("-m", *LONGER, "kd.alpha=0.1,0.3", "seed=0,1")
    killed = program(*command)
    assert killed.wait_for(in_the_middle_of_job(work, 2)), killed.text
    assert killed.kill()
    folder = sweep_folder(work)
    before = {name: (folder / name / "record.json").read_bytes() for name in finished(folder)}
    (interrupted,) = set(records(folder)) - set(before)
    assert len(before) == 2
    assert (folder / interrupted / "checkpoints" / "training.ckpt").exists()

    again = run_cli(*command)
    assert again.status == 0, again.err
    assert again.out.count("skipped: ") == 2
    assert f"resuming in {folder / interrupted}" in again.out
    assert again.out.count("writing to ") == 1
    assert "4 records (4 finished)" in again.out
    found = records(folder)
    assert len(found) == 4
    assert all((folder / name / "record.json").read_bytes() == content for name, content in before.items())
    assert [name for name, record in found.items() if record["resumed"]] == [interrupted]

    assert run_cli(*command, "outputs_dir=undisturbed").status == 0
    other = sweep_folder(work, "undisturbed")
    assert other.name == folder.name
    assert {name: results(folder / name) for name in found} == {name: results(other / name) for name in found}


@pytest.mark.slow
def test_three_sweeps_at_once_share_the_work_and_one_teacher(program, work):
    same, other = ("-m", *LONGER, "seed=0,1,2"), ("-m", *LONGER, "kd.alpha=0.2,0.4")
    running = [program(*same), program(*same), program(*other)]
    assert [each.finish() for each in running] == [0, 0, 0], [each.text for each in running]
    said = [each.text for each in running]
    assert "Traceback" not in "".join(said)
    assert len(list((work / "outputs" / "teachers").iterdir())) == 1
    assert sum(text.count("teacher: training it in") for text in said) == 1
    (teacher,) = records(work / "outputs" / "teachers").values()
    assert (teacher["status"], teacher["resumed"]) == ("finished", [])
    assert sum(text.count("writing to ") for text in said[:2]) == 3  # each job is begun once
    assert sum(text.count("resuming in ") for text in said) == 0
    assert all("3 records (3 finished)" in text for text in said[:2])  # who is done first waits for the other
    assert "2 records (2 finished)" in said[2]
    folders = {folder.name.partition("_")[0]: folder for folder in (work / "outputs" / "sweeps").iterdir()}
    assert set(folders) == {"seed", "alpha"}
    for folder in folders.values():
        assert {record["status"] for record in records(folder).values()} == {"finished"}
        assert [p for p in folder.rglob("*") if p.name.startswith((".", "run."))] == []


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_and_the_same_command_goes_on(run_cli, program, work):
    command = ("-m", *LONGER, "seed=0,1")
    running = program(*command)
    assert running.wait_for(in_the_middle_of_job(work, 1)), running.text
    running.send(signal.SIGINT)
    assert running.finish() == 130, running.text
    assert running.text.rstrip().splitlines()[-1] == (
        "compresskd: the sweep is interrupted, and what ran is saved; resume it by: the same command"
    )
    assert "Traceback" not in running.text
    assert sorted(r["status"] for r in records(sweep_folder(work)).values()) == ["finished", "interrupted"]
    outcome = run_cli(*command)
    assert outcome.status == 0, outcome.err
    assert "2 records (2 finished)" in outcome.out


@pytest.mark.slow
def test_joblib_shares_threads_runs_once_and_brings_failures_home(launched, work):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    running = launched("-m", *failing(work), "rank=2,3", *parallel, OMP_NUM_THREADS="")
    assert running.wait(timeout=300) == 1, running.said()
    folder = sweep_folder(work)
    found = records(folder)
    assert "4 jobs are 2, run once" in running.said()  # the rank does not concern them
    assert {name: record["status"] for name, record in found.items()} == {
        "+student.fails=False": "finished",
        "+student.fails=True": "failed",
    }
    fair = max(1, (os.cpu_count() or 1) // 2)
    assert {record["hardware"]["num_threads"] for record in found.values()} == {fair}
    assert len(list((work / "outputs" / "teachers").iterdir())) == 1
    assert sum("teacher: training it" in p.read_text() for p in folder.rglob("log.txt")) == 1
    assert f"compresskd: {folder}/+student.fails=True: RuntimeError: the net failed" in running.said()


@pytest.mark.slow
def test_a_killed_worker_loses_its_own_job_only(run_cli, launched, work):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = ("-m", *LONGER, "seed=0,1,2")
    running = launched(*command, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", OMP_NUM_THREADS="3")
    there = in_the_middle_of_job(work, 1)
    deadline = time.monotonic() + 300
    while not there():
        assert running.poll() is None, running.said()
        assert time.monotonic() < deadline, running.said()
        time.sleep(0.002)
    folder = sweep_folder(work)
    chosen = next(path.parent for path in folder.rglob("run.owner"))
    os.kill(int((chosen / "run.owner").read_text().split()[1]), signal.SIGKILL)
    assert running.wait(timeout=300) == 1, running.said()
    assert "Traceback" not in running.said()
    found = records(folder)
    failed = {name for name, record in found.items() if record["status"] == "failed"}
    assert failed == {chosen.name}, running.said()
    assert found[chosen.name]["error"]["type"] == "WorkerKilled"
    assert {record["hardware"]["num_threads"] for record in found.values()} == {3}  # as the user says
    assert {r["status"] for name, r in found.items() if name not in failed} == {"finished"}
    assert len(found) == 3
    assert f"compresskd: {chosen}: WorkerKilled: its worker process was killed" in running.said()
    assert run_cli(*command).status == 0
    assert {record["status"] for record in records(folder).values()} == {"finished"}


@pytest.mark.slow
def test_the_local_executor_of_submitit(launched, work):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    running = launched("-m", *failing(work), "hydra/launcher=submitit_local")
    assert running.wait(timeout=300) == 1, running.said()
    folder = sweep_folder(work)
    found = records(folder)
    assert {name: record["status"] for name, record in found.items()} == {
        "+student.fails=False": "finished",
        "+student.fails=True": "failed",
    }
    assert "the net failed" in running.said()
    assert "2 records (1 finished, 1 failed)" in running.said()
    assert len(list((work / "outputs" / "teachers").iterdir())) == 1


@pytest.mark.slow
def test_jobs_of_submitit_find_code_of_ones_own(launched, work):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    shutil.copytree(Path(__file__).parent / "my_project", work, dirs_exist_ok=True)
    own = (
        "--config-dir",
        "my_conf",
        "data=wine",
        "teacher=shortcut",
        "student=shortcut",
        "kd=cosine",
        "tracker=curves",
    )
    few = ("strategy=distill", "epochs=1", "teacher_fit.epochs=1", "measure.latency=false", "seed=0,1")
    running = launched("-m", *own, *few, "hydra/launcher=submitit_local")
    assert running.wait(timeout=300) == 0, running.said()
    folder = sweep_folder(work)
    assert {record["status"] for record in records(folder).values()} == {"finished"}
    assert sorted(path.parent.name for path in folder.rglob("curves.csv")) == ["seed=0", "seed=1"]


@pytest.mark.slow
def test_a_sweep_outlives_its_reader(work):
    command = [sys.executable, "-P", "-m", "compresskd", "-m", *SMALL, "seed=0,1"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(compresskd.__file__).parents[1]),
    }
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline().startswith("writing to ")
    running.stdout.close()
    errors = running.stderr.read()
    running.stderr.close()
    assert (running.wait(timeout=300), errors) == (0, "")
    folder = sweep_folder(work)
    assert finished(folder) == ["seed=0", "seed=1"]
    assert (folder / "compare.html").exists()
