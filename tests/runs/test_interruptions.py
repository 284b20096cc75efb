"""The program in processes of its own: killed, interrupted, started twice at once."""

import json
import random
import re
import signal

import pytest
from hostile import count

pytestmark = pytest.mark.slow

PLAIN = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=160", "rank=8", "epochs=25", "teacher_fit.epochs=40",
    "train.checkpoint_seconds=0.02", "teacher_fit.train.checkpoint_seconds=0.02", "outputs_dir=outputs",
)  # fmt: skip
FEATURES = (
    "measure.latency=false",
    "data=synthetic", "data.num_train=160", "data/augmentation=crop", "data.augmentation_bank=2",
    "train.mixup=0.3", "train.ema=0.9", "kd=fitnets", "rank=4",
    "teacher=wrn_16_2", "teacher.depth=10", "student=resnet20", "student.depth=8", "student.width_multiplier=0.5",
    "epochs=3", "train.checkpoint_seconds=0.02", "teacher_fit.train.checkpoint_seconds=0.02",
    "outputs_dir=outputs",
)  # fmt: skip


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def undisturbed(run_cli, work, known, outcome):
    """By arguments: the outcome of a run that nobody disturbed, and of its teacher; made in this process."""

    def run(arguments):
        if arguments not in known:
            ended = run_cli(*arguments, "hydra.run.dir=run")
            assert ended.status == 0, ended.err
            known[arguments] = outcome(work / "run"), outcome(teacher_in(work))
        return known[arguments]

    return run


def teacher_in(folder):
    (directory,) = (folder / "outputs" / "teachers").iterdir()
    return directory


def record_of(directory):
    return json.loads((directory / "record.json").read_text())


def num_lines(directory, stage):
    path = directory / "metrics.jsonl"
    return path.read_text().count(f'"stage": "{stage}"') if path.exists() else 0


def moments(folder, epochs):
    """In the order in which they come: where to kill, and how to tell that the run is there."""
    run, teachers = folder / "run", folder / "outputs" / "teachers"
    return {
        "teacher": lambda: any(teachers.glob("*/checkpoints/training.ckpt")),
        "distill": lambda: num_lines(run, "distill") >= epochs // 3,
        "end of distill": (run / "checkpoints" / "distill").exists,
        "after factorize": (run / "checkpoints" / "factorize").exists,
        "finetune": lambda: num_lines(run, "finetune") >= epochs // 3,
        "late in finetune": lambda: num_lines(run, "finetune") >= 2 * epochs // 3,
    }


# What each instant leaves on the disk is gone on from in test_resume; here it is whole processes that die.
OFTEN = ("teacher", "end of distill", "finetune")
EVERYWHERE = ("teacher", "distill", "end of distill", "after factorize", "finetune", "late in finetune")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (PLAIN, count(OFTEN, EVERYWHERE)),
        (FEATURES, count(("finetune",), ("teacher", "distill", "finetune"))),
    ],
    ids=["plain", "hints, augmentation bank, mixup, EMA"],
)
def test_killed_again_and_again(arguments, where, *, tmp_path, program, undisturbed, outcome):
    """The command again, and `resume DIR`, in turn."""
    delay = random.Random(0)
    again = [*arguments, "hydra.run.dir=run"]
    ways = [again, ["resume", "run"]]
    epochs = int(next(a for a in arguments if a.startswith("epochs=")).partition("=")[2])
    for number, moment in enumerate(where):
        running = program(*ways[number % 2])
        assert running.wait_for(moments(tmp_path, epochs)[moment]), running.text
        running.wait_for(lambda: False, delay.uniform(0, 0.1))
        assert running.kill(), f"{moment}: the run had ended\n{running.text}"
        assert record_of(tmp_path / "run")["status"] == "running"
    last = program(*ways[len(where) % 2])
    assert last.finish() == 0, last.text
    assert (outcome(tmp_path / "run"), outcome(teacher_in(tmp_path))) == undisturbed(arguments)
    record = record_of(tmp_path / "run")
    assert len(record["resumed"]) == len(where)
    assert record["wall_seconds"] > sum(stage["seconds"] for stage in record["stages"])
    assert last.text.count("finished before, taken from") >= 1


def test_interrupted_and_terminated(tmp_path, program, undisturbed, outcome):
    running = program(*PLAIN, "hydra.run.dir=run")
    assert running.wait_for(moments(tmp_path, 25)["teacher"]), running.text
    running.send(signal.SIGINT)
    assert running.finish() == 130
    assert f"resume it by: compresskd resume {tmp_path / 'run'}" in running.text
    assert record_of(teacher_in(tmp_path))["status"] == "interrupted"
    assert record_of(tmp_path / "run")["status"] == "interrupted"

    running = program(*PLAIN, "hydra.run.dir=run")
    assert running.wait_for(moments(tmp_path, 25)["distill"]), running.text
    running.send(signal.SIGINT)
    running.send(signal.SIGINT)  # of an impatient user
    assert running.finish() == 130
    assert f"resume it by: compresskd resume {tmp_path / 'run'}" in running.text
    assert "Traceback" not in running.text
    assert record_of(tmp_path / "run")["status"] == "interrupted"

    running = program("resume", "run")
    assert running.wait_for(moments(tmp_path, 25)["finetune"]), running.text
    running.send(signal.SIGTERM)
    assert running.finish() == 130
    assert "resume it by: compresskd resume" in running.text
    assert record_of(tmp_path / "run")["status"] == "interrupted"
    assert sorted(p.name for p in (tmp_path / "run").glob("run.*")) == ["run.lock"]

    last = program("resume", "run")
    assert last.finish() == 0, last.text
    assert (outcome(tmp_path / "run"), outcome(teacher_in(tmp_path))) == undisturbed(PLAIN)


def test_two_at_once_train_one_teacher(tmp_path, program, undisturbed, outcome):
    """After a third one was killed in the middle of the teacher's training."""
    killed = program(*PLAIN, "hydra.run.dir=killed")
    assert killed.wait_for(moments(tmp_path, 25)["teacher"]), killed.text
    assert killed.kill()

    both = [program(*PLAIN), program(*PLAIN)]
    assert [each.finish() for each in both] == [0, 0], both[0].text + both[1].text
    worker, waiter = sorted(both, key=lambda each: "waiting for" in each.text)
    assert "teacher: resuming it in" in worker.text
    assert f"teacher: waiting for process {worker.process.pid} on " in waiter.text
    assert "teacher: stage" not in waiter.text
    directories = [run_directory(each) for each in both]
    assert directories[0] != directories[1]
    run, teacher = undisturbed(PLAIN)
    assert outcome(teacher_in(tmp_path)) == teacher
    assert [outcome(directory) for directory in directories] == [run, run]
    assert len(record_of(teacher_in(tmp_path))["resumed"]) == 1
    sources = [record_of(run_directory(each))["teacher"]["source"] for each in (worker, waiter)]
    assert sources == ["trained", "reused"]


def run_directory(program):
    found = re.search(r"^writing to (\S+)$", program.text, re.MULTILINE)
    assert found
    return program.output.parent / found[1]


def test_a_directory_in_use_is_refused(tmp_path, program, undisturbed, outcome):
    first = program(*PLAIN, "hydra.run.dir=run")
    assert first.wait_for((tmp_path / "run" / "record.json").exists), first.text
    first.send(signal.SIGSTOP)
    second = program(*PLAIN, "hydra.run.dir=run")
    assert second.finish() == 2
    first.send(signal.SIGCONT)
    assert f"in use by another process (process {first.process.pid} on" in second.text
    assert first.finish() == 0
    assert outcome(tmp_path / "run") == undisturbed(PLAIN)[0]
