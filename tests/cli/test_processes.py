"""Runs of several processes: what is refused, what they come to, and how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from refusals import fault, refused, told

import compresskd
from compresskd.run import FAILED, FINISHED, INTERRUPTED, read_metrics, read_record

SMALL = (
    "data=synthetic", "data.num_train=96", "data.num_test=32", "data.input_shape=[1,8,8]", "teacher=mlp",
    "student=resnet20", "student.depth=8", "student.width_multiplier=0.25", "strategy=distill", "epochs=2",
    "teacher_fit.epochs=1", "train.batch_size=16", "measure.latency=false", "optimizer=sgd",
)  # fmt: skip
DENSE = (
    *(each for each in SMALL if not each.startswith("student")),
    "student=mlp",
    "student.hidden=[300,300]",
)
LIMITED = (
    "-c",
    "import resource, signal, sys\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    "from compresskd.cli import main\n"
    "sys.exit(main(sys.argv[1:]))",
)
REFUSED = {
    "none": (("processes=0",), fault("processes", "0", "1")),
    "a word": (("processes=two",), fault("processes", "two")),
    "more than rows": (("processes=17",), fault("train.batch_size", "16", "17")),
    "compiled": (
        ("processes=2", "train.compile=true"),
        fault("train.compile", "true", "false", "processes=2"),
    ),
    "parts, of another kind": (("train.sharding=ddp",), fault("train.sharding", "ddp", "fsdp")),
    "parts, averaged": (("train.sharding=fsdp", "train.ema=0.9"), fault("train.sharding", "fsdp", "ema=0.9")),
    "parts, rounded": (
        ("train.sharding=fsdp", "bits=4"),
        fault("train.sharding", "fsdp", "null", "quantize", "whole weights"),
    ),
    "parts, factorized": (
        (*DENSE, "train.sharding=fsdp", "strategy=compress_then_distill", "rank=2"),
        fault("train.sharding", "fsdp", "null", "whole weights"),
    ),
    "parts, with a projection": (
        ("train.sharding=fsdp", "kd=fitnets", "teacher=resnet20", "teacher.depth=8"),
        fault("train.sharding", "fsdp", "null", "projection"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_several_is_refused(run_cli, case):
    typed, *needles = REFUSED[case]
    refused(run_cli(*(() if typed[0] == DENSE[0] else SMALL), *typed), *needles)


@pytest.fixture
def as_of_torchrun(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setattr("compresskd.distributed.launch.met_by_torchrun", lambda: None)


def test_another_number_than_torchruns_is_refused(run_cli, as_of_torchrun):
    refused(run_cli(*SMALL, "processes=3"), fault("processes", "3", "2", "torchrun"))


def test_a_sweep_by_torchrun_is_refused(run_cli, as_of_torchrun):
    refused(run_cli("-m", *SMALL, "seed=0,1"), fault("processes", "torchrun", "-m processes=2"))


def test_a_run_resumes_with_another_number_alone(run_cli):
    told(run_cli("resume", "there", "epochs=3"), "epochs=3", "number of processes")


def started(work, *arguments, launcher=("-m", "compresskd")):
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(compresskd.__file__).parents[1])}
    with (work / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-P", *launcher, *arguments],
            cwd=work,
            stdout=said,
            stderr=said,
            env={**os.environ, **own},
        )


def children(process):
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def waited_for(process, condition):
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def ended(family):
    """Whether all processes of a family end within 30 seconds."""
    deadline = time.monotonic() + 30
    while not all(map(is_gone, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return all(map(is_gone, family))


def is_gone(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def alike(one, other, tolerance=1e-3):
    curves = [read_metrics(each / "metrics.jsonl") for each in (one, other)]
    for a, b in zip(*curves, strict=True):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=tolerance)
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=tolerance)
    predictions = [dict(np.load(each / "predictions.npz")) for each in (one, other)]
    for name, values in predictions[0].items():
        assert values.shape == predictions[1][name].shape
        assert (values == predictions[1][name]).mean() > 0.9


@pytest.mark.slow
def test_two_processes_are_one_run_that_equals_that_of_one(work, run_program):
    assert run_program(*SMALL, "hydra.run.dir=one").status == 0
    two = run_program(*SMALL, "hydra.run.dir=two", "processes=2")
    assert two.status == 0, two.err
    assert two.out.count("distill: validation") == 1
    record = read_record(work / "two")
    assert (record.status, record.processes, record.hardware["devices"]) == (FINISHED, 2, ["cpu", "cpu"])
    counts = [read_record(work / name).stages[0]["teacher_outputs"]["original"] for name in ("one", "two")]
    assert [c["num_served"] for c in counts] == [2 * read_record(work / "one").data["num_train"]] * 2
    alike(work / "one", work / "two")


@pytest.mark.slow
def test_torchrun_gives_one_run(work, run_program):
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "compresskd")
    assert started(work, *SMALL, "hydra.run.dir=torchrun", launcher=launcher).wait(120) == 0, said(work)
    assert read_record(work / "torchrun").processes == 2
    assert said(work).count("everything is in") == 1
    assert run_program(*SMALL, "hydra.run.dir=one").status == 0
    alike(work / "one", work / "torchrun")


def said(work):
    return (work / "said.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_killed_process_ends_the_others_and_the_run_resumes(work, run_program, victim):
    long = (*SMALL, "epochs=40", "processes=2", "hydra.run.dir=run", "train.checkpoint_seconds=0.2")
    process = started(work, *long)
    waited_for(process, (work / "run" / "checkpoints" / "training.ckpt").exists)
    family = [process.pid, *children(process.pid)]
    os.kill(family[victim == "second"], signal.SIGKILL)
    assert ended(family)
    process.wait()
    if victim == "second":
        assert process.returncode == 1
        assert read_record(work / "run").status == FAILED
        assert "process 1 of 2 has ended (killed by signal 9)" in said(work)
        assert "compresskd resume" in said(work)
    resumed = run_program("resume", "run", "processes=1")
    assert resumed.status == 0, resumed.err
    record = read_record(work / "run")
    assert record.status == FINISHED
    assert record.resumed[-1]["processes"] == 1


@pytest.mark.slow
def test_the_others_end_with_a_first_one_that_is_killed_while_they_start(work):
    process = started(work, *SMALL, "processes=2", "hydra.run.dir=run")
    waited_for(process, lambda: children(process.pid))
    family = [process.pid, *children(process.pid)]
    process.kill()
    assert ended(family)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["null", "fsdp"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_saves_and_ends_all(work, run_program, number, sharding):
    typed = (*SMALL, "processes=2", "hydra.run.dir=run", f"train.sharding={sharding}")
    process = started(work, *typed, "epochs=1000")
    waited_for(process, (work / "run" / "metrics.jsonl").exists)
    family = [process.pid, *children(process.pid)]
    process.send_signal(number)
    assert ended(family)
    assert process.wait() == 130
    assert read_record(work / "run").status == INTERRUPTED
    assert said(work).count("interrupted and saved") == 1
    assert "Traceback" not in said(work)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["null", "fsdp"])
def test_a_full_disk_ends_all_and_the_run_resumes(work, run_program, sharding):
    """A limit on the size of a file stands for it: the first file beyond is the checkpoint of the training."""
    typed = (*DENSE, "processes=2", "hydra.run.dir=run", f"train.sharding={sharding}")
    process = started(work, *typed, launcher=LIMITED)
    family: list[int] = []
    while process.poll() is None:
        family = [*{*family, process.pid, *children(process.pid)}]
        time.sleep(0.05)
    assert ended(family)
    assert process.returncode == 1
    assert said(work).count("resume it by: compresskd resume") == 1
    assert "Traceback" not in said(work)
    resumed = run_program("resume", "run", "processes=1")
    assert resumed.status == 0, resumed.err
    assert read_record(work / "run").status == FINISHED


@pytest.mark.slow
def test_parameters_in_parts_give_the_run_of_whole_ones(work, run_program):
    typed = (*DENSE, "kd=soft_targets", "processes=2")
    for name, sharding in (("whole", "null"), ("parts", "fsdp")):
        outcome = run_program(*typed, f"hydra.run.dir={name}", f"train.sharding={sharding}")
        assert outcome.status == 0, outcome.err
    alike(work / "whole", work / "parts", 1e-5)
    assert read_record(work / "parts").stages[-1]["size"] == read_record(work / "whole").stages[-1]["size"]
