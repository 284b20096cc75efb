"""Sweeps: named by what varies, gone on with after a kill, shared by two processes, run by every launcher."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import compresskd
from compresskd.cli import sweep
from compresskd.cli.sweep import failures, naming_overrides, varying_keys
from compresskd.run import RunDirectoryError, describe_owner, open_run

SMALL = (
    "data=synthetic", "data.num_train=64", "data.num_test=32", "student.hidden=[8]", "teacher.hidden=[8]",
    "epochs=1", "teacher_fit.epochs=1", "rank=2", "strategy=distill",
)  # fmt: skip
TIMES = {
    "seconds",
    "train_seconds",
    "samples_per_second",
    "latency_ms",
    "latency_ms_beside",
    "teacher_outputs",
}


def failing(work):
    """Overrides of two jobs, one of which fails after more steps than the trial before a run takes."""
    (work / "failing_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, fails):\n"
        "        super().__init__(64, 4)\n"
        "        self.fails, self.calls = fails, 0\n\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        if self.fails and self.calls > 10:\n"
        "            raise RuntimeError('the net failed')\n"
        "        return super().forward(x.flatten(1))\n"
    )
    own = ("student=custom", "~student.num_classes", "student._target_=failing_net.Net")
    small = [option for option in SMALL if not option.startswith(("student.", "epochs="))]
    return (*small, *own, "epochs=20", "+student.fails=false,true")


@pytest.fixture
def program(work):
    """program('-m', ..., NAME='value') -> a running command line, the leader of a process group of its own."""
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


def wait_for(process, condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.said()
        assert time.monotonic() < deadline, process.said()
        time.sleep(0.002)


def records(folder):
    """By the name of its folder, every record below `folder`."""
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.rglob("record.json"))}


def sweep_folder(work, outputs="outputs"):
    (folder,) = (work / outputs / "sweeps").iterdir()
    return folder


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


# Names


def test_a_sweep_is_named_by_its_keys_and_a_hash_of_what_is_constant():
    jobs = [["rank=4", "seed=0", "kd.alpha=0.5"], ["rank=8", "seed=0", "kd.alpha=0.5"]]
    first, second = naming_overrides(jobs, [], "/out")
    assert first.startswith("hydra.sweep.dir='/out/sweeps/rank_")
    assert second == "hydra.job.config.override_dirname.exclude_keys=['kd.alpha','seed']"

    def folder(*jobs, outputs="/out"):
        return naming_overrides(jobs, [], outputs)[0]

    extended = [["rank=16", "seed=0", "kd.alpha=0.5"], *jobs]
    assert folder(*extended) == first
    assert folder(*[job[::-1] for job in jobs]) == first  # the order of words says nothing
    assert folder(*[[*job, "hydra/launcher=joblib", "outputs_dir=/out"] for job in jobs]) == first
    assert folder(*[[*job, "epochs=3"] for job in jobs]) != first
    assert folder(*[["rank=4", "kd.alpha=0.5", f"seed={seed}"] for seed in (0, 1)]) != first


def test_keys_of_the_same_last_word_do_not_share_a_folder():
    def folder(key):
        return naming_overrides([[f"{key}=1"], [f"{key}=2"]], [], "/out")[0]

    assert folder("optimizer.lr") != folder("teacher_fit.optimizer.lr")


def test_what_the_user_named_is_left_alone():
    jobs = [["rank=4"], ["rank=8"]]
    assert naming_overrides(jobs, ["hydra.sweep.dir=mine", "hydra.sweep.subdir=job"], "/out") == []
    assert varying_keys([["+a.b=1", "c=1"], ["+a.b=2", "c=1"]]) == ["a.b"]


def test_a_name_that_no_folder_can_have_is_refused():
    jobs = [[f"compress.include=[{'x' * 300}{i}]"] for i in range(2)]
    with pytest.raises(RunDirectoryError, match=r"write hydra\.sweep\.subdir='\$\{hydra\.job\.num\}'"):
        naming_overrides(jobs, [], "/out")
    assert len(naming_overrides(jobs, ["hydra.sweep.subdir=${hydra.job.num}"], "/out")) == 1


def test_failures_of_another_sweep_in_the_folder_are_none_of_ours(tmp_path):
    def write(name, **values):
        (tmp_path / name).mkdir()
        record = {"strategy": "s", "config": {}, "seed": 0, **values}
        (tmp_path / name / "record.json").write_text(json.dumps(record))

    error = {"type": "ValueError", "message": "wrong", "traceback": ""}
    write("lr=1", overrides=["lr=1", "seed=0"], status="finished")
    write("lr=2", overrides=["lr=2", "seed=0"], status="failed", error=error)
    write("lr=3", overrides=["lr=3", "seed=0"], status="running")
    write("lr=4", overrides=["lr=4", "seed=0"], status="failed", error=error)
    found = failures(tmp_path, [[f"lr={i}", "seed=0"] for i in (1, 2, 3)])
    assert found == {
        str(tmp_path / "lr=2"): "ValueError: wrong",
        str(tmp_path / "lr=3"): "was left unfinished; the same command resumes it",
    }


# In this process


def test_a_sweep_is_compared_and_goes_on_with_more_values(run_cli, work):
    outcome = run_cli("-m", *SMALL, "kd.alpha=0.2,0.4")
    assert outcome.status == 0, outcome.err
    folder = sweep_folder(work)
    assert folder.name.startswith("alpha_")
    assert sorted(p.name for p in folder.iterdir()) == [
        "compare.csv", "compare.html", "compare.md", "kd.alpha=0.2", "kd.alpha=0.4", "multirun.yaml",
    ]  # fmt: skip
    assert "2 records (2 finished) in 2 groups" in outcome.out
    assert outcome.out.rstrip().endswith(f"the sweep is in {folder}")
    assert len((folder / "compare.csv").read_text().splitlines()) == 3
    before = {name: (folder / name / "record.json").read_bytes() for name in records(folder)}

    outcome = run_cli("-m", *SMALL, "kd.alpha=0.4,0.2,0.6")
    assert outcome.status == 0, outcome.err
    assert sweep_folder(work) == folder
    assert outcome.out.count("skipped: ") == 2
    assert f"skipped: {folder / 'kd.alpha=0.2'} is finished" in outcome.out
    assert "3 records (3 finished)" in outcome.out
    assert all((folder / name / "record.json").read_bytes() == content for name, content in before.items())
    assert len(list((work / "outputs" / "teachers").iterdir())) == 1
    assert records(folder)["kd.alpha=0.6"]["teacher"]["source"] == "reused"


def test_folders_that_the_user_names(run_cli, work):
    outcome = run_cli(
        "-m", *SMALL, "seed=0,1", "hydra.sweep.dir='${outputs_dir}/mine'", "hydra.sweep.subdir='job_${seed}'"
    )
    assert outcome.status == 0, outcome.err
    assert set(records(work / "outputs" / "mine")) == {"job_0", "job_1"}
    assert (work / "outputs" / "mine" / "compare.csv").exists()
    assert not (work / "outputs" / "sweeps").exists()


def test_a_finished_job_of_another_configuration_is_not_taken_for_this_one(run_cli, work):
    named = ("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=mine")
    assert run_cli(*named).status == 0
    before = (work / "mine" / "seed=0" / "record.json").read_bytes()
    outcome = run_cli(*named, "kd.temperature=2")
    assert outcome.status == 1
    assert outcome.err.count("holds a finished run of another configuration (") == 2
    assert outcome.err.count("kd.temperature: 4.0, now 2") == 2
    assert "(of a sweep: hydra.sweep.dir=DIR), or remove that folder" in outcome.err
    assert (work / "mine" / "seed=0" / "record.json").read_bytes() == before


def test_a_failed_job_stops_no_other_and_the_end_names_every_one(run_cli, work, monkeypatch):
    for trial in ("factory_faults", "try_training"):  # which would foresee it
        monkeypatch.setattr(f"compresskd.config.parts.{trial}", lambda *_: [])
    outcome = run_cli("-m", *SMALL, "optimizer.lr=0.01,1e30,0.02,1e31")
    assert outcome.status == 1
    folder = sweep_folder(work)
    found = records(folder)
    assert {name: record["status"] for name, record in found.items()} == {
        "optimizer.lr=0.01": "finished",
        "optimizer.lr=1e+30": "failed",
        "optimizer.lr=0.02": "finished",
        "optimizer.lr=1e+31": "failed",
    }
    error = found["optimizer.lr=1e+30"]["error"]
    assert error["type"] == "NonFiniteLoss"
    assert error["traceback"].startswith("Traceback (most recent call last):")
    for name in ("optimizer.lr=1e+30", "optimizer.lr=1e+31"):
        assert f"compresskd: {folder / name}: NonFiniteLoss: the loss is not finite" in outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert "4 records (2 finished, 2 failed)" in outcome.out

    again = run_cli(
        "-m", *SMALL, "optimizer.lr=0.01,0.02"
    )  # the failures of the sweep before are none of its own
    assert (again.status, again.err) == (0, "")


def test_a_job_in_use_is_skipped_waited_for_and_named(run_cli, work, monkeypatch):
    assert run_cli("-m", *SMALL, "seed=0,1").status == 0
    taken = sweep_folder(work) / "seed=2"
    begun, waited_for = threading.Event(), threading.Event()

    def describe(folder):
        owner = describe_owner(folder)
        waited_for.set()
        return owner

    monkeypatch.setattr(sweep, "describe_owner", describe)

    def hold():  # a lock belongs to the thread that took it
        held = open_run(taken)
        begun.set()
        waited_for.wait(60)
        held.close()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)
    who = describe_owner(taken)
    outcome = run_cli("-m", *SMALL, "seed=1,2")
    thread.join()
    assert f"skipped: {taken} is run by {who}" in outcome.out
    assert f"waiting for {who}, which runs {taken}" in outcome.out
    assert outcome.status == 0  # nothing was begun there, so that there is nothing to tell of


def test_slurm_composes(run_cli):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    outcome = run_cli("hydra/launcher=submitit_slurm", "hydra.launcher.partition=short", "--cfg", "hydra")
    assert outcome.status == 0, outcome.err
    assert "submitit_launcher.SlurmLauncher" in outcome.out
    assert "partition: short" in outcome.out


# Studies

TINY_STUDY = (
    "data=synthetic", "data.num_train=64", "data.num_test=32", "student.hidden=[16]", "teacher.hidden=[16]",
    "seed=0", "total_epochs=4", "compress.num_calibration=32",
)  # fmt: skip


def trained_epochs(record):
    """Epochs of all training stages, as the metrics of a run count them."""
    return sum(stage.get("epochs", 0) for stage in record["stages"])


@pytest.mark.slow
def test_the_whole_study_by_one_word_at_matched_budgets(run_cli, work):
    outcome = run_cli("experiment=compare_strategies", *TINY_STUDY, "rank=3")
    assert outcome.status == 0, outcome.err
    folder = sweep_folder(work)
    assert folder.name.startswith("strategy_")
    found = records(folder)
    assert len(found) == 11
    assert all(name == f"strategy={record['strategy']}" for name, record in found.items())
    epochs = {record["strategy"]: trained_epochs(record) for record in found.values()}
    assert epochs.pop("compress") == 0
    assert set(epochs.values()) == {4}
    for name in found:
        lines = (
            (folder / name / "metrics.jsonl").read_text().count("\n") if name != "strategy=compress" else 0
        )
        assert lines == trained_epochs(found[name])
    (teacher,) = records(work / "outputs" / "teachers").values()
    assert trained_epochs(teacher) == 4
    assert len({r["teacher"]["fingerprint"] for r in found.values() if r["teacher"]}) == 1
    dense, matched, low_rank = (
        found[f"strategy={s}"]["stages"][-1]["size"]["folder_bytes"]
        for s in ("train", "distill_matched", "train_to_compressed")
    )
    assert matched <= low_rank < dense
    assert "11 records (11 finished) in 11 groups" in outcome.out


@pytest.mark.slow
def test_a_ladder_against_one_jump_by_one_word(run_cli, work):
    outcome = run_cli("experiment=progressive_rank", *TINY_STUDY, "rank=2")
    assert outcome.status == 0, outcome.err
    found = records(sweep_folder(work))
    ladder, jump = found["strategy=multi_stage"], found["strategy=distill_then_compress"]
    assert [stage["name"] for stage in ladder["stages"]] == ["distill", "step_1_r8", "step_2_r4", "step_3_r2"]
    assert [stage.get("epochs", 0) for stage in ladder["stages"]] == [1, 1, 1, 1]
    assert [stage.get("epochs", 0) for stage in jump["stages"]] == [2, 0, 2]
    reached = [
        [s["layers"] for s in run["stages"] if s["layers"]][-1]["fc1"]["ranks"] for run in (ladder, jump)
    ]
    assert reached == [[2], [2]]


def test_a_budget_that_one_job_cannot_share_is_refused_before_the_first(run_cli):
    outcome = run_cli("-m", *SMALL, "total_epochs=6", "strategy=distill,distill_then_compress,multi_stage")
    assert outcome.status == 2
    assert outcome.left == []
    assert "total_epochs: got 6, expected 4 or 8: " in outcome.err
    assert "(job strategy=multi_stage)" in outcome.err


# In processes of their own

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
def test_a_killed_sweep_of_twelve_goes_on_and_ends_as_an_undisturbed_one(run_cli, program, work):
    command = ("-m", *LONGER, "kd.alpha=0.1,0.3,0.5,0.7", "seed=0,1,2")
    killed = program(*command)
    wait_for(killed, in_the_middle_of_job(work, 5))
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    folder = sweep_folder(work)
    before = {name: (folder / name / "record.json").read_bytes() for name in finished(folder)}
    (interrupted,) = set(records(folder)) - set(before)
    assert len(before) == 5
    assert (folder / interrupted / "checkpoints" / "training.ckpt").exists()

    again = program(*command)
    assert again.wait(timeout=120) == 0, again.said()
    text = again.said()
    assert text.count("skipped: ") == 5
    assert f"going on in {folder / interrupted}" in text
    assert text.count("writing to ") == 6
    assert "12 records (12 finished)" in text
    found = records(folder)
    assert len(found) == 12
    assert all((folder / name / "record.json").read_bytes() == content for name, content in before.items())
    assert [name for name, record in found.items() if record["resumed"]] == [interrupted]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run_cli(*command, "outputs_dir=undisturbed").status == 0
    finally:
        torch.set_num_threads(threads)
    other = sweep_folder(work, "undisturbed")
    assert other.name == folder.name
    assert {name: results(folder / name) for name in found} == {name: results(other / name) for name in found}


@pytest.mark.slow
def test_three_sweeps_at_once_share_the_work_and_one_teacher(program, work):
    same, other = ("-m", *LONGER, "seed=0,1,2,3"), ("-m", *LONGER, "kd.alpha=0.2,0.4")
    running = [program(*same), program(*same), program(*other)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0], [p.said() for p in running]
    said = [process.said() for process in running]
    assert "Traceback" not in "".join(said)
    assert len(list((work / "outputs" / "teachers").iterdir())) == 1
    assert sum(text.count("teacher: training it in") for text in said) == 1
    (teacher,) = records(work / "outputs" / "teachers").values()
    assert (teacher["status"], teacher["resumed"]) == ("finished", [])
    assert sum(text.count("writing to ") for text in said[:2]) == 4  # each job is begun once
    assert sum(text.count("going on in ") for text in said) == 0
    assert all("4 records (4 finished)" in text for text in said[:2])  # who is done first waits for the other
    assert "2 records (2 finished)" in said[2]
    folders = {folder.name.partition("_")[0]: folder for folder in (work / "outputs" / "sweeps").iterdir()}
    assert set(folders) == {"seed", "alpha"}
    for folder in folders.values():
        assert {record["status"] for record in records(folder).values()} == {"finished"}
        assert [p for p in folder.rglob("*") if p.name.startswith((".", "run."))] == []


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_and_the_same_command_goes_on(run_cli, program, work):
    command = ("-m", *LONGER, "seed=0,1,2")
    running = program(*command)
    wait_for(running, in_the_middle_of_job(work, 1))
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(timeout=60) == 130, running.said()
    assert running.said().rstrip().splitlines()[-1] == (
        "compresskd: the sweep is interrupted, and what ran is saved; resume it by: the same command"
    )
    assert "Traceback" not in running.said()
    assert sorted(r["status"] for r in records(sweep_folder(work)).values()) == ["finished", "interrupted"]
    outcome = run_cli(*command)
    assert outcome.status == 0, outcome.err
    assert "3 records (3 finished)" in outcome.out


@pytest.mark.slow
def test_joblib_shares_threads_and_brings_failures_home(program, work):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    running = program("-m", *failing(work), "seed=0,1", *parallel, OMP_NUM_THREADS="")
    assert running.wait(timeout=120) == 1, running.said()
    folder = sweep_folder(work)
    found = records(folder)
    assert sorted(record["status"] for record in found.values()) == ["failed"] * 2 + ["finished"] * 2
    fair = max(1, (os.cpu_count() or 1) // 2)
    assert {record["hardware"]["num_threads"] for record in found.values()} == {fair}
    assert len(list((work / "outputs" / "teachers").iterdir())) == 1
    assert sum("teacher: training it" in p.read_text() for p in folder.rglob("log.txt")) == 1
    for seed in (0, 1):
        assert (
            f"compresskd: {folder}/+student.fails=True,seed={seed}: RuntimeError: the net failed"
            in running.said()
        )

    running = program("-m", *SMALL, "seed=0,1", *parallel, OMP_NUM_THREADS="3")
    assert running.wait(timeout=120) == 0, running.said()
    (folder,) = (work / "outputs" / "sweeps").glob("seed_*")
    assert {record["hardware"]["num_threads"] for record in records(folder).values()} == {3}


@pytest.mark.slow
def test_a_killed_worker_loses_its_own_job_only(program, work):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = ("-m", *LONGER, "seed=0,1,2,3,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    running = program(*command)
    wait_for(running, in_the_middle_of_job(work, 1))
    folder = sweep_folder(work)
    chosen = next(path.parent for path in folder.rglob("run.owner"))
    os.kill(int((chosen / "run.owner").read_text().split()[1]), signal.SIGKILL)
    assert running.wait(timeout=120) == 1, running.said()
    assert "Traceback" not in running.said()
    found = records(folder)
    failed = {name for name, record in found.items() if record["status"] == "failed"}
    assert failed == {chosen.name}, running.said()
    assert found[chosen.name]["error"]["type"] == "WorkerKilled"
    assert {r["status"] for name, r in found.items() if name not in failed} == {"finished"}
    assert len(found) == 5
    assert f"compresskd: {chosen}: WorkerKilled: its worker process was killed" in running.said()
    again = program(*command)
    assert again.wait(timeout=120) == 0, again.said()
    assert {record["status"] for record in records(folder).values()} == {"finished"}


@pytest.mark.slow
def test_the_local_executor_of_submitit(program, work):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    running = program("-m", *failing(work), "hydra/launcher=submitit_local")
    assert running.wait(timeout=120) == 1, running.said()
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
    assert (running.wait(timeout=60), errors) == (0, "")
    folder = sweep_folder(work)
    assert finished(folder) == ["seed=0", "seed=1"]
    assert (folder / "compare.html").exists()
