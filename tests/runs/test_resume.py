"""Whatever instant a run is killed at, it goes on and ends as if nothing had happened, bit for bit.

A killed process leaves the disk as it was at that instant. So one undisturbed run is watched, and every state that
its folder is ever in is copied; going on from each copy must lead to the same files.
"""

import copy
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hostile import count
from tiny_runs import default_stages
from torch import nn

from compresskd import artifact
from compresskd.data.augmentation import Compose, RandomCrop
from compresskd.engine.strategy import State
from compresskd.kd.features import Hint
from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.run import RunDirectoryError
from compresskd.stages import Compression, Factorize, Fit, Quantization, Quantize


class Watcher:
    """Copies ROOT before and after everything that moves, removes or flushes a file in it."""

    def __init__(self, root, copies, monkeypatch):
        self.root, self.copies, self.seen, self.states = root, copies, set(), []
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._watched(getattr(owner, name)))
        monkeypatch.setattr(os, "fsync", self._watched(os.fsync))
        monkeypatch.setattr(shutil, "rmtree", self._watched(shutil.rmtree))
        self.watching = True

    def _watched(self, function):
        def watched(*args, **kwargs):
            self.copy()
            try:
                return function(*args, **kwargs)
            finally:
                self.copy()

        return watched

    def copy(self):
        if not self.watching:
            return
        self.watching = False
        state = _digest(self.root)
        if state not in self.seen and (self.root / "run" / "record.json").exists():
            self.seen.add(state)
            self.states.append(self.copies / str(len(self.states)))
            shutil.copytree(self.root, self.states[-1])
        self.watching = True


def _digest(root):
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.name not in ("log.txt", "run.owner", "run.lock"):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes() if path.is_file() else b"/")
    return digest.digest()


@dataclass(frozen=True)
class DrawAndHandOn:
    """A stage of a user: draws from torch's generator, and makes another model the teacher."""

    needs_teacher = True

    def __call__(self, state, context):
        with torch.no_grad():
            for parameter in state.student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        next(state.student.parameters()).requires_grad_(False)  # which it stays in the stages after
        return State(state.student, copy.deepcopy(state.student).eval())


def from_teacher():
    objective = Objective({"cross_entropy": CrossEntropy(0.3), "soft_targets": SoftTargets(0.7)})
    return {
        "factorize": Factorize(Compression(rank=4), source="teacher"),
        "mine": DrawAndHandOn(),
        "finetune": Fit(objective, epochs=1),
    }


def with_hints():
    hint = Hint(weight=1.0, pairs={"layer2": "layer2"})
    objective = Objective({"cross_entropy": CrossEntropy(0.3), "soft": SoftTargets(0.7), "hint": hint})
    plain = Objective({"cross_entropy": CrossEntropy(0.3), "soft": SoftTargets(0.7)})
    return {"hints": Fit(objective, epochs=2), "plain": Fit(plain, epochs=3)}


def quantized():
    objective = Objective({"cross_entropy": CrossEntropy(0.3), "soft_targets": SoftTargets(0.7)})
    frozen = {"freeze_fraction": 0.5, "core_start": "nearest"}
    how = Quantization(bits=4, other_bits=8, activation_bits=8, entropy=0.01, **frozen)
    return {
        "fit": Fit(objective, epochs=1),
        "factorize": Factorize(Compression(rank=2)),
        "quantize": Quantize(how, objective, epochs=2),
    }


def resnet(width):
    return {"target": "compresskd.models.resnet.ResNet", "kwargs": {"depth": 8, "width_multiplier": width}}


def bank():
    return {"augmentation": Compose({"crop": RandomCrop(padding=1)}), "augmentation_bank": 2}


# name: (options of the experiment, options of the data, of how many states one is gone on from: usually, in full)
CASES = {
    "distill, factorize, finetune": ({}, {}, (3, 2)),
    "finetune without epochs": ({"stages": default_stages(finetune_epochs=0)}, {}, (11, 5)),
    "from the teacher, by a stage of the user's": ({"stages": from_teacher()}, {}, (5, 2)),
    "hints, augmentation bank, mixup, EMA": (
        {
            "stages": with_hints(),
            "student": resnet(0.25),
            "teacher": resnet(0.5),
            "recipe": {"mixup": 0.3, "ema": 0.9},
        },
        bank(),
        (17, 7),
    ),
    "quantization-aware training": ({"stages": quantized(), "student": resnet(0.25)}, {}, (29, 13)),
    "augmentation bank": ({}, bank(), (17, 7)),
    "fresh augmentation": ({}, bank() | {"augmentation_bank": None}, (17, 7)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_goes_on_from_every_state_of_the_disk(
    case, *, tmp_path, monkeypatch, make_experiment, make_data, execute, outcome
):
    options, data_options, every = CASES[case]
    data = make_data(**data_options)
    root = tmp_path / "undisturbed"
    root.mkdir()
    with monkeypatch.context() as patches:
        watcher = Watcher(root, tmp_path / "copies", patches)
        execute(make_experiment(root, data=data, **options), root)
    expected = {name: outcome(root / name) for name in ("run", "teacher")}
    assert expected["run"]["status"] == expected["teacher"]["status"] == "finished"
    assert len(watcher.states) > 30

    states = watcher.states[:: count(*every)]
    resumed = 0
    for state in states:
        if json.loads((state / "run" / "record.json").read_text())["status"] == "finished":
            continue
        record = execute(make_experiment(state, data=data, **options), state)
        assert {name: outcome(state / name) for name in ("run", "teacher")} == expected, state
        assert len(record.resumed) == 1
        resumed += 1
    assert resumed >= max(2, len(states) - 2)


@pytest.mark.slow
def test_torn_line_and_lines_past_the_checkpoint_are_dropped(tmp_path, make_experiment, execute, outcome):
    execute(make_experiment(tmp_path / "a"), tmp_path / "a")
    experiment = make_experiment(tmp_path / "b")
    stop_in(experiment, tmp_path / "b", execute, epoch=1)
    path = tmp_path / "b" / "run" / "metrics.jsonl"
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[-1].replace('"epoch": 0', '"epoch": 1') + "\n")
        file.write('{"stage": "distill", "epo')
    execute(experiment, tmp_path / "b")
    assert outcome(tmp_path / "b" / "run") == outcome(tmp_path / "a" / "run")


def test_what_was_recorded_of_time_and_log_goes_on(tmp_path, make_experiment, execute):
    experiment = make_experiment(tmp_path)
    record = stop_in(experiment, tmp_path, execute, epoch=1)
    # as if the process had been killed an hour after the last time that it wrote the record
    file = tmp_path / "run" / "checkpoints" / "training.ckpt"
    age_checkpoint(file, 3600.0)
    finished = execute(experiment, tmp_path)
    assert 3600 < finished.wall_seconds < 3700
    assert 3600 < finished.stages[0]["seconds"] < 3700
    assert finished.stages[1]["seconds"] < 60
    assert finished.created == record["created"]
    assert [set(entry) for entry in finished.resumed] == [{"at"}]
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert sum("stage 1/1: distill" in line for line in lines) == 1  # before the interruption
    assert sum("stage 1/3: distill" in line for line in lines) == 1
    assert any("distill: resumes at epoch 2" in line for line in lines)


def test_resuming_elsewhere_is_recorded(tmp_path, make_experiment, execute, monkeypatch):
    experiment = make_experiment(tmp_path)
    stop_in(experiment, tmp_path, execute, epoch=0)
    monkeypatch.setattr("compresskd.engine.experiment.versions", lambda: {"torch": "99.0"})
    finished = execute(experiment, tmp_path)
    assert finished.resumed[0]["versions"] == {"torch": "99.0"}
    assert finished.versions["torch"] == torch.__version__
    assert set(finished.resumed[0]) == {"at", "versions"}


@pytest.mark.slow
def test_a_damaged_training_checkpoint_is_refused_with_the_way_out(
    tmp_path, make_experiment, execute, outcome
):
    execute(make_experiment(tmp_path / "a"), tmp_path / "a")
    experiment = make_experiment(tmp_path / "b")
    stop_in(experiment, tmp_path / "b", execute, epoch=1)
    file = tmp_path / "b" / "run" / "checkpoints" / "training.ckpt"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"damaged .*; remove it to repeat the stage"):
        execute(experiment, tmp_path / "b")
    file.unlink()
    execute(experiment, tmp_path / "b")
    assert outcome(tmp_path / "b" / "run") == outcome(tmp_path / "a" / "run")


def test_other_data_are_refused(tmp_path, make_experiment, make_data, execute):
    stop_in(make_experiment(tmp_path), tmp_path, execute, epoch=0)
    with pytest.raises(RunDirectoryError, match=r"begun on other data \(fingerprint \w+ then, \w+ now\)"):
        execute(make_experiment(tmp_path, data=make_data(data_seed=1)), tmp_path)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "interrupted"


def test_another_teacher_is_refused(tmp_path, make_experiment, execute):
    stop_in(make_experiment(tmp_path), tmp_path, execute, epoch=0)
    shutil.rmtree(tmp_path / "teacher")
    mlp = {"target": "compresskd.models.mlp.MLP", "kwargs": {"hidden": [20, 20]}}
    with pytest.raises(RunDirectoryError, match="begun with another teacher"):
        execute(make_experiment(tmp_path, teacher=mlp), tmp_path)


def test_another_model_in_the_teacher_s_folder_is_refused(tmp_path, make_experiment, execute):
    """Whole and loadable, but not what the teacher's run wrote: by its file, by its values, by its score."""
    experiment = make_experiment(tmp_path)
    stop_in(experiment, tmp_path, execute, epoch=0)
    folder = tmp_path / "teacher" / "checkpoints" / "train"
    teacher = artifact.load(folder)
    nn.init.zeros_(list(teacher.parameters())[-1])
    artifact.save(teacher, folder)
    again = "remove .*teacher to train the teacher again"
    with pytest.raises(RunDirectoryError, match=f"is not the file that was recorded .*{again}"):
        execute(experiment, tmp_path)
    path = tmp_path / "teacher" / "record.json"
    record = json.loads(path.read_text())
    record["stages"][0].pop("files")
    path.write_text(json.dumps(record))
    with pytest.raises(RunDirectoryError, match=f"its weights are not those that its run recorded; {again}"):
        execute(experiment, tmp_path)
    record["stages"][0].pop("fingerprint")
    record["stages"][0]["metrics"]["test_accuracy"] += 10 / 32
    path.write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=f"scores .*% on the test split, its record says .*{again}"):
        execute(experiment, tmp_path)


def test_a_damaged_teacher_says_what_to_remove(tmp_path, make_experiment, execute):
    execute(make_experiment(tmp_path / "a"), tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "run")
    weights = tmp_path / "a" / "teacher" / "checkpoints" / "train" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        RunDirectoryError, match=r"is not the file.*remove .*teacher to train the teacher again"
    ):
        execute(make_experiment(tmp_path / "a"), tmp_path / "a")


@pytest.mark.slow
def test_a_failed_run_can_be_gone_on_with(tmp_path, make_experiment, execute, outcome, monkeypatch):
    execute(make_experiment(tmp_path / "a"), tmp_path / "a")
    experiment = make_experiment(tmp_path / "b")
    with monkeypatch.context() as patches:
        patches.setattr(Factorize, "__call__", _fails)
        with pytest.raises(ZeroDivisionError):
            execute(experiment, tmp_path / "b")
    record = json.loads((tmp_path / "b" / "run" / "record.json").read_text())
    assert record["status"] == "failed"
    assert record["error"]["type"] == "ZeroDivisionError"
    assert "_fails" in record["error"]["traceback"]
    finished = execute(experiment, tmp_path / "b")
    assert finished.error is None
    assert outcome(tmp_path / "b" / "run") == outcome(tmp_path / "a" / "run")


def _fails(stage, state, context):
    return 1 / 0


def test_a_full_disk_keeps_its_own_name(tmp_path, make_experiment, execute, monkeypatch):
    experiment = make_experiment(tmp_path)

    def full(path, payload):
        monkeypatch.setattr(Path, "write_text", _no_space)  # the record cannot be written either
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("compresskd.training.saved.write_checked", full)
    with pytest.raises(OSError, match=r"No space left on device: .*training.ckpt"):
        execute(experiment, tmp_path)


def _no_space(path, *args, **kwargs):
    raise OSError(28, "No space left on device", str(path))


def stop_in(experiment, root, execute, *, epoch):
    """Interrupt the first stage by Ctrl-C right after its checkpoint of `epoch` epochs; the record then."""
    fit = next(iter(experiment.strategy.stages.values()))
    stopping = replace(
        experiment, strategy=replace(experiment.strategy, stages={"distill": _Stopped(fit, epoch)})
    )
    with pytest.raises(KeyboardInterrupt):
        execute(stopping, root)
    record = json.loads((root / "run" / "record.json").read_text())
    assert record["status"] == "interrupted"
    return record


@dataclass(frozen=True)
class _Stopped:
    stage: Fit
    epoch: int
    needs_teacher = True

    def __call__(self, state, context):
        save = context.save_training

        def stop(saved):
            save(saved)
            if saved["epoch"] == self.epoch:
                raise KeyboardInterrupt

        context.save_training = stop
        return self.stage(state, context)


def age_checkpoint(file, seconds):
    import io

    from compresskd.run import read_checked, write_checked

    saved = torch.load(io.BytesIO(read_checked(file)), weights_only=True)
    saved["seconds"] += seconds
    saved["wall_seconds"] += seconds
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    write_checked(file, buffer.getvalue())
