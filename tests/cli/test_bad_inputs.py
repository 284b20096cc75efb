"""Bad input, row by row: what is typed, and what the one message must say. Nothing is trained, nothing is left."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from compresskd.models.build import build
from compresskd.run import open_run

DATA = ("data=synthetic", "data.num_train=64", "data.num_test=16")
TINY = (*DATA, "strategy=train", "epochs=1", "student.hidden=[8]")

# What is typed (besides the data set), and what the message must hold.
OVERRIDES = {
    "top key": ("rnak=16", "rnak: unknown option; did you mean rank?"),
    "nested key": ("kd.temprature=3", "kd.temprature: unknown option; did you mean kd.temperature?"),
    "key without group": ("temperature=3", "temperature: unknown option; did you mean kd.temperature?"),
    "group name": ("optimiser=sgd", "optimiser: unknown option; did you mean optimizer?"),
    "added key": ("+kd2=soft_targets", "kd2: unknown option; did you mean kd?"),
    "added key that nothing reads": ("+kd.temp=3", "kd.temp: nothing reads this key"),
    "added twice": ("+rank=3", "+rank: is there already; write rank=3"),
    "deleted key": (
        "~strategy.stages.finetun",
        "there is nothing to delete; did you mean strategy.stages.finetune?",
    ),
    "teacher": ("teacher=resnet57", "teacher: got "),
    "strategy": ("strategy=destil", "strategy: got "),
    "kd": ("kd=softtargets", "kd: got "),
    "no choice": ("strategy=null", "strategy: got "),
    "augmentation": ("data/augmentation=crop_flipp", "data/augmentation: got "),
    "experiment": ("experiment=nowhere", "experiment: got "),
    "hydra key": ("hydra.run.dirr=x", "hydra.run.dirr: unknown option; did you mean hydra.run.dir?"),
    "word for int": ("rank=abc", "rank: got "),
    "float for int": ("epochs=1.5", "epochs: got "),
    "null for int": ("seed=null", "seed: got "),
    "word for float": ("kd.temperature=hot", "kd.temperature: got "),
    "word in a formula": ("kd.alpha=hot", "kd.alpha: got "),
    "word for bool": ("train.compile=perhaps", "train.compile: got "),
    "word for list": ("compress.include=fc1", "compress.include: got "),
    "value for mapping": ("optimizer=3", "optimizer: got "),
    "rank 0": ("rank=0", "rank: got "),
    "rank too large": ("rank=1000", "rank: got "),
    "epochs": ("epochs=-1", "epochs: got "),
    "temperature": ("kd.temperature=0", "kd.temperature: got "),
    "alpha": ("kd.alpha=1.2", "kd.alpha: got "),
    "learning rate": ("optimizer.lr=-1", "optimizer.lr: got "),
    "batch size": ("train.batch_size=0", "train.batch_size: got "),
    "label smoothing": ("train.label_smoothing=1.5", "train.label_smoothing: got "),
    "seed": ("seed=-1", "seed: got "),
    "teacher's recipe": ("teacher_fit.train.batch_size=0", "teacher_fit.train.batch_size: got "),
    "device": ("device=cdua", "device: got "),
    "absent device": ("device=cuda:77", "device: got "),
    "precision": ("precision=fp8", "precision: got "),
    "malformed": ("rank==3", "rank==3: is no override; write"),
    "bracket": ("rank=[3", "rank=[3: is no override; brackets"),
    "no key": ("=3", "=3: is no override; a"),
    "sweep without -m": ("rank=4,8", "rank: got "),
    "empty value": ("rank=", "rank: got "),
    "reference": ("rank=${nowhere}", "rank: got "),
    "through a reference": (
        "strategy.stages.distill.objective.scale=2",
        "takes its value from another place; write kd.objective.scale=2",
    ),
    "stage option": (
        "strategy.stages.distill.epohcs=3",
        "strategy.stages.distill.epohcs: unknown option; did you mean strategy.stages.distill.epochs?",
    ),
    "added stage option": (
        "+strategy.stages.distill.epohcs=3",
        "unknown option of compresskd.stages.Fit; did you mean epochs?",
    ),
    "stage": ("strategy.stages.distil.epochs=3", "did you mean strategy.stages.distill.epochs?"),
    "no stage": ("strategy.stages.distill=null", "strategy.stages.distill: got "),
    "name of a stage": (
        "+strategy.stages.teacher=${strategy.stages.distill}",
        "strategy.stages.teacher: got ",
    ),
    "strategy.name": ("strategy.name=a/b", "strategy.name: got "),
    "pattern": ("compress.include=[conv9]", "compress.include: got "),
    "class count": ("student.num_classes=7", "student.num_classes: got "),
    "option of a model": ("student.activation=rule", "student.activation: got "),
    "missing target": ("student=custom", "student._target_: is missing; write the dotted path"),
    "wrong target": ("student._target_=torch.nn.Linearr", "torch.nn has no 'Linearr'; did you mean 'Linear'?"),
    "bits": ("bits=5", "bits: got "),
    "no bits": ("bits=0", "bits: got "),
    "word for bits": ("bits=four", "bits: got "),
    "bits without a stage": (
        ["bits=4", "~strategy.stages.quantize"],
        "bits: got ",
    ),
    "nothing but quantization": (
        ["~strategy.stages.distill", "~strategy.stages.factorize", "~strategy.stages.finetune"],
        "bits: got ",
    ),
    "bits and a budget": (
        ["bits=4", "quant.budget=5000"],
        "bits: got ",
    ),
    "option of quantization": ("quant.grd=affine", "quant.grd: unknown option; did you mean quant.grid?"),
    "unused layers": ("quant.layers={fc1: 4}", "quant.layers: got "),
    "unused activations": ("quant.activation_bits=8", "quant.activation_bits: got "),
    "quant.mode": (["bits=4", "quant.mode=later"], "quant.mode: got "),
    "pattern of quant.layers": (
        ["bits=4", "quant.layers={conv*: 8}"],
        "quant.layers: got ",
    ),
    "bits of quant.layers": (
        ["bits=4", "quant.layers={fc1: 6}"],
        "quant.layers.fc1: got ",
    ),
    "everything in float": (["bits=4", "quant.layers={fc*: 0}"], "quant.layers: got "),
    "activation bits": (["bits=4", "quant.activation_bits=4"], "quant.activation_bits: got "),
    "vector bits": (["bits=4", "quant.other_bits=12"], "quant.other_bits: got "),
    "ternary": (["bits=4", "quant.grid=ternary"], "quant.grid: got "),
    "granularity": (["bits=4", "quant.granularity=row"], "quant.granularity: got "),
    "rank slices": (
        ["bits=4", "quant.granularity=rank_slice"],
        "quant.granularity: got ",
    ),
    "estimator": (["bits=4", "quant.estimator=ste"], "quant.estimator: got "),
    "batch norm": (["bits=4", "quant.batch_norm=late"], "quant.batch_norm: got "),
    "freeze": (["bits=4", "quant.freeze_fraction=2"], "quant.freeze_fraction: got "),
    "entropy": (["bits=4", "quant.entropy=-1"], "quant.entropy: got "),
    "budget": ("quant.budget=1.5", "quant.budget: got "),
    "tiny budget": ("quant.budget=100", "quant.budget: got "),
    "epochs of quantization": (["bits=4", "quant.epochs=-1"], "quant.epochs: got "),
    "weights": ("teacher.weights=/no/such.pt", "teacher.weights: /no/such.pt: no such file"),
    "validation": ("data.validation_fraction=1.5", "data.validation_fraction: got "),
    "empty outputs_dir": ("outputs_dir=", "outputs_dir: got "),
}  # fmt: skip


def refused(outcome, *needles):
    assert outcome.status == 2, outcome.err
    assert outcome.left == []
    assert "Traceback" not in outcome.out + outcome.err
    for needle in needles:
        assert needle in outcome.err


@pytest.mark.parametrize(("override", "needle"), OVERRIDES.values(), ids=OVERRIDES)
def test_override_is_refused(run_cli, override, needle):
    outcome = run_cli(*DATA, *([override] if isinstance(override, str) else override))
    refused(outcome, needle)
    assert outcome.err.startswith("compresskd: 1 fault; nothing was run:\n")
    assert outcome.err.count("\n") == 2  # each thing is said once


COMMANDS = {
    "unknown verb": (["resum", "x"], "'resum' is no verb and no override; did you mean resume?"),
    "bare key": (["rank"], "'rank' is no verb and no override"),
    "unknown flag": (["--multirn", "rank=4"], "--multirn: unknown flag; did you mean --multirun?"),
    "flag's value": (["--cfg", "jobb"], "argument --cfg/-c: invalid choice: 'jobb'"),
    "flag without value": (["--config-dir"], "argument --config-dir/-cd: expected one argument"),
    "config dir": (["--config-dir", "nowhere"], "--config-dir: got nowhere, expected a folder"),
    "config name": (["--config-name", "other", *DATA], "Cannot find primary config 'other'"),
    "config path": (["--config-path", "/no/such", *DATA], "Primary config directory not found"),
    "shown configuration": (["--cfg", "job", "rnak=1"], "rnak: unknown option; did you mean rank?"),
    "empty sweep value": (["-m", *DATA, "rank=4,"], "rank=4,: is no override; write rank=4"),
    "resume without folder": (["resume"], ""),
    "model on data": (["student=lenet5"], "student: LeNet5 with padding 0 needs images of at least 16x16 pixels"),
    "teacher on data": (["teacher=lenet5"], "teacher: LeNet5 with padding 0 needs images of at least 16x16"),
    "no data path": (["data=mnist", "data.path=/no/such"], "data.path: got /no/such, which is not there"),
    "data path not given": (["data=image_folder"], "data.path: got null, expected a folder with train/CLASS"),
    "classes of the teacher": (
        [*DATA, "teacher.num_classes=10", "student.num_classes=10"],
        "teacher.num_classes: got 10, expected 4",
    ),
    "hint": (
        [*DATA, "kd=fitnets", "kd.pairs={fc9: fc1}"],
        "kd.pairs: got 'fc9', expected the name of a module of the student",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "needle"), COMMANDS.values(), ids=COMMANDS)
def test_command_is_refused(run_cli, arguments, needle):
    refused(run_cli(*arguments), needle)


def test_all_faults_are_told_at_once(run_cli):
    typed = ["rank=0", "kd.alpha=2", "student=mpl", "device=cdua", "foo=1", "optimizer.lr=x", "seed=abc"]
    outcome = run_cli(*DATA, *typed, "train.batchsize=3", "teacher=lenet5", "rank==4")
    refused(outcome, "10 faults; nothing was run:")
    keys = {line.split(":")[0].strip() for line in outcome.err.splitlines()[1:]}
    assert keys == {
        "rank", "kd.alpha", "student", "device", "foo", "optimizer.lr", "seed", "train.batchsize", "teacher",
        "rank==4",
    }  # fmt: skip


def test_data_that_takes_long_is_only_looked_for_when_something_else_is_wrong(run_cli):
    outcome = run_cli("data=mnist", "data.path=/no/such", "rank=0")
    refused(outcome, "2 faults", "rank: got 0", "data.path: got /no/such")


def test_verbose_adds_the_traceback(run_cli):
    outcome = run_cli(*DATA, "student.activation=rule", "--verbose")
    assert outcome.status == 2
    assert "Traceback" in outcome.err
    assert "OptionError" in outcome.err or "ConfigError" in outcome.err
    assert "compresskd: 1 fault; nothing was run:" in outcome.err


def test_every_job_of_a_sweep_is_checked_before_the_first(run_cli):
    outcome = run_cli("-m", *DATA, "rank=4,0", "seed=1,-2", "teacher=resnet57")
    refused(
        outcome,
        "rank: got 0, expected >= 1 (job rank=0,seed=1 and 1 more)",
        "seed: got -2, expected >= 0 (job rank=4,seed=-2 and 1 more)",
    )
    assert outcome.err.count("teacher: got resnet57") == 1  # in all jobs: told once, without a job


def test_a_teacher_that_is_not_needed_may_lack_its_weights_but_no_key(run_cli):
    """Its file is not looked at, so that one set of overrides serves a sweep over strategies; keys are checked."""
    refused(run_cli(*TINY, "teacher.weights=/no/such.pt", "teacher.hiden=[3]"), "1 fault", "teacher.hiden")
    assert run_cli(*TINY, "teacher.weights=/no/such.pt").status == 0


# Files


def _corrupted(folder):
    (folder / "w.pt").write_bytes(b"PK\x03\x04 no checkpoint")
    return ["teacher.weights=w.pt"], "w.pt: not a torch file of weights, or a damaged one"


def _corrupted_safetensors(folder):
    (folder / "w.safetensors").write_bytes(b"\x10\x00")
    return ["teacher.weights=w.safetensors"], "w.safetensors: not a safetensors file, or a damaged one"


def _of_another_architecture(folder):
    other = build(
        "compresskd.models.mlp.MLP", {"hidden": [3], "num_classes": 4, "input_shape": [1, 8, 8]}, seed=0
    )
    torch.save(other.state_dict(), folder / "w.pt")
    return ["teacher.weights=w.pt"], "w.pt does not fit MLP: 2 missing (fc3.weight, fc3.bias)"


def _objects(folder):
    torch.save(nn.Linear(2, 2), folder / "w.pt")
    return ["teacher.weights=w.pt"], "w.pt: holds Python objects beside tensors"


def _not_of_the_layout(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("nothing")
    return ["data=image_folder", "data.path=mine"], "mine"


def _broken_module(folder):
    (folder / "broken_net.py").write_text("import a_package_that_is_not_there\n")
    return [
        "student=custom",
        "student._target_=broken_net.Net",
    ], "importing broken_net failed: No module named"


def _no_such_module(folder):
    return [
        "student=custom",
        "student._target_=no_net.Net",
    ], "student._target_: no_net.Net: no module named 'no_net'"


def _no_module(folder):
    (folder / "my_net.py").write_text("def net(num_classes):\n    return 3\n")
    return [
        "student=custom",
        "student._target_=my_net.net",
    ], "expected it to construct a torch.nn.Module, got int"


def _raising(folder):
    (folder / "raising_net.py").write_text("def net(num_classes):\n    return {}['x']\n")
    return ["student=custom", "student._target_=raising_net.net"], "student: KeyError: 'x'"


def _output_is_a_file(folder):
    (folder / "out").write_text("")
    return ["outputs_dir=out"], "outputs_dir: got "


def _run_is_a_file(folder):
    (folder / "out").write_text("")
    return ["hydra.run.dir=out/run"], "hydra.run.dir: got 'out/run', which cannot be written ("


def _yaml(folder):
    (folder / "conf" / "kd").mkdir(parents=True)
    (folder / "conf" / "kd" / "mine.yaml").write_text("alpha: [1, 2\n")
    return ["--config-dir=conf", "kd=mine"], "kd: got mine; "


FILES = [
    _corrupted, _corrupted_safetensors, _of_another_architecture, _objects, _not_of_the_layout, _broken_module,
    _no_such_module, _no_module, _raising, _output_is_a_file, _run_is_a_file, _yaml,
]  # fmt: skip


@pytest.mark.parametrize("prepare", FILES, ids=lambda f: f.__name__.strip("_").replace("_", " "))
def test_file_is_refused(run_cli, work, prepare):
    typed, needle = prepare(work)
    before = {path.name for path in work.iterdir()}
    outcome = run_cli(*([] if "data=image_folder" in typed else DATA), *typed)
    assert outcome.status == 2, outcome.err
    assert needle in outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert {path.name for path in work.iterdir()} - {"__pycache__"} == before


# Run directories


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the tiny run is kept, once one test has made it."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def finished(run_cli, work, kept):
    """The folder of a finished tiny run."""
    if kept.exists():
        shutil.copytree(kept, work / "run")
    else:
        assert run_cli(*TINY, "hydra.run.dir=run").status == 0
        shutil.copytree(work / "run", kept)
    return work / "run"


def _unfinish(folder):
    record = json.loads((folder / "record.json").read_text())
    record.update(status="interrupted", stages=[], final=None)
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").unlink()


def _content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.lock"}


def _says(outcome, *needles):
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    for needle in needles:
        assert needle in outcome.err


def test_a_finished_run_is_left_alone(run_cli, finished):
    before = _content(finished)
    _says(
        run_cli(*TINY, "hydra.run.dir=run"), "holds a finished run, which is never overwritten; write another"
    )
    _says(run_cli("resume", "run"), "run is finished; there is nothing to resume")
    assert _content(finished) == before


def test_an_unfinished_run_of_another_configuration_is_left_alone(run_cli, finished):
    _unfinish(finished)
    before = _content(finished)
    outcome = run_cli(*TINY, "hydra.run.dir=run", "rank=3")
    _says(
        outcome, "holds an unfinished run of another configuration (", "rank: 32, now 3", "compresskd resume"
    )
    assert _content(finished) == before


def test_a_run_in_use_is_left_alone(run_cli, work):
    held = open_run(work / "run")
    try:
        _says(
            run_cli(*TINY, "hydra.run.dir=run"), "is in use by another process (process ", "; wait for it, or"
        )
    finally:
        held.close()
    assert not (work / "run" / "record.json").exists()


@pytest.mark.parametrize("where", ["no/such", "."], ids=["nothing there", "no run"])
def test_resume_needs_a_run(run_cli, where):
    outcome = run_cli("resume", where)
    refused(outcome, f"{where} is not a run directory: it has no record.json")


@pytest.mark.parametrize("text", ['{"strategy": "tr', "[]", '{"a": 1}'], ids=["truncated", "list", "other"])
def test_resume_needs_a_record(run_cli, finished, text):
    (finished / "record.json").write_text(text)
    _says(run_cli("resume", "run"), f"{Path('run') / 'record.json'} cannot be read: ")
    _says(run_cli(*TINY, "hydra.run.dir=run"), "record.json cannot be read: ")
    assert (finished / "record.json").read_text() == text


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_resume_needs_a_whole_training_checkpoint(run_cli, finished, damage):
    _unfinish(finished)
    checkpoint = finished / "checkpoints" / "training.ckpt"
    content = b"compresskd-checkpoint-1\n" + bytes(100)
    checkpoint.write_bytes({"cut": content[:30], "flipped": content, "foreign": b"PK"}[damage])
    _says(run_cli("resume", "run"), "training.ckpt is ", "remove it to repeat the stage")
    assert json.loads((finished / "record.json").read_text())["status"] != "finished"


def test_resume_names_data_that_has_gone(run_cli, finished):
    _unfinish(finished)
    record = json.loads((finished / "record.json").read_text())
    record["config"]["data"] = {**record["config"]["data"], "_target_": "gone_data.load"}
    (finished / "record.json").write_text(json.dumps(record))
    _says(
        run_cli("resume", "run"),
        "data._target_: 'gone_data.load' is not part of compresskd",
        "--trust gone_data",
    )
    said = run_cli("resume", "run", "--trust", "gone_data")
    _says(said, "data._target_: gone_data.load: no module named 'gone_data'")


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """small_disk('200k') -> a file system of that size; small_disk.change(options) mounts it anew."""
    folder = tmp_path / "disk"

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
            check=False,
            capture_output=True,
            text=True,
        )

    def make(size):
        folder.mkdir()
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command here")
        mounted = mount(f"size={size}")
        if mounted.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
        return folder

    make.change = lambda options: mount(f"remount,{options}")
    yield make
    if folder.exists():
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def test_read_only_output_is_refused(run_cli, small_disk):
    disk = small_disk("1m")
    small_disk.change("ro")
    refused(
        run_cli(*TINY, f"outputs_dir={disk}/out", "rank=0"),
        "2 faults",
        f"outputs_dir: got '{disk}/out', which cannot be written ({disk}: Read-only file system); write outputs_dir=",
    )


# 30k: the record does not fit when the run fails; 60k: the model does not; 200k: the training checkpoint does not
@pytest.mark.parametrize(
    ("size", "epochs"), [("30k", 2), ("60k", 0), ("200k", 2)], ids=["record", "model", "checkpoint"]
)
def test_full_disk_ends_the_run_and_nothing_is_lost(run_cli, small_disk, size, epochs):
    disk = small_disk(size)
    typed = (
        *DATA,
        "strategy=train",
        f"epochs={epochs}",
        "student.hidden=[128, 128]",
        f"hydra.run.dir={disk}/run",
    )
    outcome = run_cli(*typed)
    assert outcome.status == 1
    assert "Traceback" not in outcome.out + outcome.err
    assert "No space left on device" in outcome.err
    assert f"resume it by: compresskd resume {disk}/run" in outcome.err
    record = json.loads((disk / "run" / "record.json").read_text())
    assert record["status"] == "running" if size == "30k" else "failed"
    assert not [p for p in (disk / "run").rglob("*") if p.name.startswith(".")]

    small_disk.change("size=20m")
    assert run_cli("resume", f"{disk}/run").status == 0
    record = json.loads((disk / "run" / "record.json").read_text())
    assert record["status"] == "finished"
    assert len((disk / "run" / "metrics.jsonl").read_text().splitlines()) == epochs if epochs else True
