"""Bad input, row by row: what is typed, and what the one message must say. Nothing is trained, nothing is left."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from refusals import fault, refused, told
from torch import nn

from compresskd.models.build import build
from compresskd.run import open_run

DATA = ("data=synthetic", "data.num_train=64", "data.num_test=16")
TINY = (*DATA, "measure.latency=false", "strategy=train", "epochs=1", "student.hidden=[8]")

# What is typed (besides the data set), and what the message must hold.
OVERRIDES = {
    "top key": ("rnak=16", fault("rnak", "unknown option", "rank?")),
    "nested key": ("kd.temprature=3", fault("kd.temprature", "unknown option", "kd.temperature?")),
    "key without group": ("temperature=3", fault("temperature", "unknown option", "kd.temperature?")),
    "group name": ("optimiser=sgd", fault("optimiser", "unknown option", "optimizer?")),
    "added key": ("+kd2=soft_targets", fault("kd2", "unknown option", "kd?")),
    "added key that nothing reads": ("+kd.temp=3", fault("kd.temp", "nothing reads")),
    "added twice": ("+rank=3", fault("+rank", "is there already", "rank=3")),
    "deleted key": (
        "~strategy.stages.finetun",
        fault("~strategy.stages.finetun", "unknown option", "strategy.stages.finetune?"),
    ),
    "teacher": ("teacher=resnet57", fault("teacher", "resnet56?", "resnet57")),
    "strategy": ("strategy=destil", fault("strategy", "distill?", "destil")),
    "kd": ("kd=softtargets", fault("kd", "soft_targets?", "softtargets")),
    "no choice": ("strategy=null", fault("strategy", "null")),
    "augmentation": ("data/augmentation=crop_flipp", "got crop_flipp; did you mean crop_flip?"),
    "experiment": ("experiment=nowhere", fault("experiment", "nowhere")),
    "hydra key": ("hydra.run.dirr=x", fault("hydra.run.dirr", "unknown option", "hydra.run.dir?")),
    "word for int": ("rank=abc", fault("rank", "abc")),
    "float for int": ("epochs=1.5", fault("epochs", "1.5")),
    "null for int": ("seed=null", fault("seed", "null")),
    "word for float": ("kd.temperature=hot", fault("kd.temperature", "hot")),
    "word in a formula": ("kd.alpha=hot", fault("kd.alpha", "hot")),
    "word for bool": ("train.compile=perhaps", fault("train.compile", "perhaps", "true", "false")),
    "word for list": ("compress.include=fc1", fault("compress.include", "fc1", "[a, b]")),
    "value for mapping": ("optimizer=3", fault("optimizer", "3")),
    "rank 0": ("rank=0", fault("rank", "0", "1")),
    "rank too large": ("rank=1000", fault("rank", "no layer gets smaller", "1000")),
    "epochs": ("epochs=-1", fault("epochs", "-1", "0")),
    "temperature": ("kd.temperature=0", fault("kd.temperature", "0")),
    "alpha": ("kd.alpha=1.2", fault("kd.alpha", "0", "1", "1.2")),
    "learning rate": ("optimizer.lr=-1", fault("optimizer.lr", "-1", "0")),
    "batch size": ("train.batch_size=0", fault("train.batch_size", "0", "1")),
    "label smoothing": ("train.label_smoothing=1.5", fault("train.label_smoothing", "1.5", "1")),
    "seed": ("seed=-1", fault("seed", "-1", "0")),
    "teacher's recipe": ("teacher_fit.train.batch_size=0", fault("teacher_fit.train.batch_size", "0")),
    "device": ("device=cdua", fault("device", "cuda:N", "auto", "cpu", "cdua")),
    "absent device": ("device=cuda:77", fault("device", "cuda:77")),
    "a key of measure that is taken away": (
        "~measure.latency",
        fault("measure.latency", "missing", "measure.latency=true"),
    ),
    "a key of measure that nothing reads": ("+measure.lat=true", fault("measure.lat", "latency")),
    "a key of tt that is taken away": ("~tt.plan", fault("tt.plan", "missing", "tt.plan=fixed")),
    "what is measured": ("measure.latency=3", fault("measure.latency", "3", "true", "false")),
    "precision": ("precision=fp8", fault("precision", "fp8", "fp32", "bf16", "fp16")),
    "malformed": ("rank==3", fault("rank==3", "is no override", "KEY=VALUE")),
    "bracket": ("rank=[3", fault("rank=[3", "is no override")),
    "no key": ("=3", fault("=3", "is no override", "=")),
    "sweep without -m": ("rank=4,8", fault("rank", "4,8", "-m")),
    "empty value": ("rank=", fault("rank")),
    "reference": ("rank=${nowhere}", fault("rank", "nowhere", "not found")),
    "through a reference": (
        "strategy.stages.distill.objective.scale=2",
        "takes its value from another place; write kd.objective.scale=2",
    ),
    "stage option": (
        "strategy.stages.distill.epohcs=3",
        fault("strategy.stages.distill.epohcs", "unknown option", "strategy.stages.distill.epochs?"),
    ),
    "added stage option": (
        "+strategy.stages.distill.epohcs=3",
        "unknown option of compresskd.stages.Fit; did you mean epochs?",
    ),
    "stage": ("strategy.stages.distil.epochs=3", "did you mean strategy.stages.distill.epochs?"),
    "no stage": ("strategy.stages.distill=null", "strategy.stages.distill: got "),
    "name of a stage": (
        "+strategy.stages.teacher=${strategy.stages.distill}",
        fault("strategy.stages.teacher", "another name"),
    ),
    "strategy.name": ("strategy.name=a/b", fault("strategy.name", "a/b", "letters", "digits")),
    "pattern": ("compress.include=[conv9]", fault("compress.include", "conv9", "fc1")),
    "class count": ("student.num_classes=7", fault("student.num_classes", "7", "4")),
    "option of a model": ("student.activation=rule", fault("student.activation", "relu")),
    "missing target": ("student=custom", fault("student._target_", "missing")),
    "wrong target": ("student._target_=torch.nn.Linearr", "torch.nn has no 'Linearr'; did you mean Linear?"),
    "bits": ("bits=5", fault("bits", "5", "2", "3", "4", "8", "null")),
    "no bits": ("bits=0", fault("bits", "0", "2", "3", "4", "8", "null")),
    "word for bits": ("bits=four", fault("bits", "four")),
    "bits without a stage": (
        ["bits=4", "~strategy.stages.quantize"],
        fault("bits", "4", "distill_then_compress"),
    ),
    "nothing but quantization": (
        ["~strategy.stages.distill", "~strategy.stages.factorize", "~strategy.stages.finetune"],
        fault("bits", "null"),
    ),
    "bits and a budget": (
        ["bits=4", "quant.budget=5000"],
        fault("bits", "4", "null", "budget=5000"),
    ),
    "option of quantization": ("quant.grd=affine", fault("quant.grd", "unknown option", "quant.grid?")),
    "unused layers": ("quant.layers={fc1: 4}", fault("quant.layers", "{'fc1': 4}", "null", "bits=8")),
    "unused activations": ("quant.activation_bits=8", fault("quant.activation_bits", "8", "null")),
    "quant.mode": (["bits=4", "quant.mode=later"], fault("quant.mode", "later", "qat", "ptq")),
    "pattern of quant.layers": (
        ["bits=4", "quant.layers={conv*: 8}"],
        fault("quant.layers", "conv*", "fc1, fc2, fc3"),
    ),
    "bits of quant.layers": (
        ["bits=4", "quant.layers={fc1: 6}"],
        fault("quant.layers.fc1", "6", "0", "2", "3", "4", "8"),
    ),
    "everything in float": (["bits=4", "quant.layers={fc*: 0}"], fault("quant.layers", "more than 0 bits")),
    "activation bits": (["bits=4", "quant.activation_bits=4"], fault("quant.activation_bits", "4", "8", "null")),
    "vector bits": (["bits=4", "quant.other_bits=12"], fault("quant.other_bits", "12", "4", "8", "16", "32")),
    "ternary": (["bits=4", "quant.grid=ternary"], fault("quant.grid", "4", "bits=2", "ternary")),
    "granularity": (["bits=4", "quant.granularity=row"], fault("quant.granularity", "row", "tensor", "channel")),
    "rank slices": (
        ["bits=4", "quant.granularity=rank_slice"],
        fault("quant.granularity", "rank_slice", "tensor", "channel"),
    ),
    "estimator": (["bits=4", "quant.estimator=ste"], fault("quant.estimator", "ste", "lsq", "straight_through")),
    "batch norm": (["bits=4", "quant.batch_norm=late"], fault("quant.batch_norm", "late", "keep", "freeze", "fold")),
    "freeze": (["bits=4", "quant.freeze_fraction=2"], fault("quant.freeze_fraction", "2", "1")),
    "entropy": (["bits=4", "quant.entropy=-1"], fault("quant.entropy", "-1", "0")),
    "budget": ("quant.budget=1.5", fault("quant.budget", "1.5")),
    "tiny budget": ("quant.budget=100", fault("quant.budget", "100")),
    "epochs of quantization": (["bits=4", "quant.epochs=-1"], fault("quant.epochs", "-1", "0")),
    "weights": ("teacher.weights=/no/such.pt", fault("teacher.weights", "no such file", "/no/such.pt")),
    "validation": ("data.validation_fraction=1.5", fault("data.validation_fraction", "0", "1")),
    "empty outputs_dir": ("outputs_dir=", fault("outputs_dir", "at least 1")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("override", "needle"), OVERRIDES.values(), ids=OVERRIDES)
def test_override_is_refused(run_cli, override, needle):
    outcome = run_cli(*DATA, *([override] if isinstance(override, str) else override))
    refused(outcome, needle)
    assert outcome.err.startswith("compresskd: 1 fault; nothing was run:\n")
    assert outcome.err.count("\n") == 2  # each thing is said once


IN_FULL = {
    "rank=0": "rank: got 0, expected >= 1",
    "kd.alpha=1.2": "kd.alpha: got 1.2, expected >= 0 and <= 1",
    "train.compile=perhaps": "train.compile: got 'perhaps', expected true or false",
    "student.hidden=[8,b]": "student.hidden[1]: got 'b', expected a whole number",
    "kd.temprature=3": "kd.temprature: unknown option; did you mean kd.temperature?",
}


def test_messages_in_full(run_cli):
    """The dialect: each kind of message once; elsewhere the key and the kind are enough."""
    told = run_cli(*DATA, *IN_FULL).err
    assert sorted(line.strip() for line in told.splitlines()[1:]) == sorted(IN_FULL.values())


COMMANDS = {
    "unknown verb": (["resum", "x"], "'resum' is no verb and no override; did you mean resume?"),
    "bare key": (["rank"], "'rank' is no verb and no override"),
    "unknown flag": (["--multirn", "rank=4"], "unrecognized arguments: --multirn"),
    "flag's value": (["--cfg", "jobb"], "argument -c/--cfg: invalid choice: 'jobb'"),
    "flag without value": (["--config-dir"], "argument -cd/--config-dir: expected one argument"),
    "config dir": (["--config-dir", "nowhere"], fault("--config-dir", "nowhere")),
    "config name": (["--config-name", "other", *DATA], "Cannot find primary config 'other'"),
    "config path": (["--config-path", "/no/such", *DATA], "Primary config directory not found"),
    "shown configuration": (["--cfg", "job", "rnak=1"], fault("rnak", "unknown option", "rank?")),
    "empty sweep value": (["-m", *DATA, "rank=4,"], "rank=4,: is no override"),
    "resume without folder": (["resume"], ""),
    "model on data": (["student=lenet5"], fault("student", "LeNet5", "16x16")),
    "teacher on data": (["teacher=lenet5"], fault("teacher", "LeNet5", "16x16")),
    "no data path": (["data=mnist", "data.path=/no/such"], fault("data.path", "/no/such")),
    "data path not given": (["data=image_folder"], fault("data.path", "train/CLASS")),
    "classes of the teacher": (
        [*DATA, "teacher.num_classes=10", "student.num_classes=10"],
        fault("teacher.num_classes", "10", "4"),
    ),
    "hint": (
        [*DATA, "kd=fitnets", "kd.pairs={fc9: fc1}"],
        fault("kd.pairs", "fc9"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "needle"), COMMANDS.values(), ids=COMMANDS)
def test_command_is_refused(run_cli, arguments, needle):
    refused(run_cli(*arguments), needle)


@pytest.mark.slow
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
    refused(outcome, "2 faults", fault("rank", "0"), fault("data.path", "/no/such"))


def test_verbose_adds_the_traceback(run_cli):
    outcome = run_cli(*DATA, "student.activation=rule", "--verbose")
    assert outcome.status == 2
    assert "Traceback" in outcome.err
    assert "OptionError" in outcome.err or "ConfigError" in outcome.err
    assert "compresskd: 1 fault; nothing was run:" in outcome.err


@pytest.mark.slow
def test_every_job_of_a_sweep_is_checked_before_the_first(run_cli):
    outcome = run_cli("-m", *DATA, "rank=4,0", "seed=1,-2", "teacher=resnet57")
    refused(
        outcome,
        fault("rank", "0", "1", "job rank=0,seed=1 and 1 more"),
        fault("seed", "-2", "0", "job rank=4,seed=-2 and 1 more"),
    )
    assert outcome.err.count("teacher: got resnet57") == 1  # in all jobs: told once, without a job


@pytest.mark.slow
def test_a_teacher_that_is_not_needed_may_lack_its_weights_but_no_key(run_cli):
    """Its file is not looked at, so that one set of overrides serves a sweep over strategies; keys are checked."""
    refused(run_cli(*TINY, "teacher.weights=/no/such.pt", "teacher.hiden=[3]"), "1 fault", "teacher.hiden")
    assert run_cli(*TINY, "teacher.weights=/no/such.pt").status == 0


# Files


def _corrupted(folder):
    (folder / "w.pt").write_bytes(b"PK\x03\x04 no checkpoint")
    return ["teacher.weights=w.pt"], "w.pt: not a torch file of weights"


def _corrupted_safetensors(folder):
    (folder / "w.safetensors").write_bytes(b"\x10\x00")
    return ["teacher.weights=w.safetensors"], "w.safetensors: not a safetensors file"


def _of_another_architecture(folder):
    other = build(
        "compresskd.models.mlp.MLP", {"hidden": [3], "num_classes": 4, "input_shape": [1, 8, 8]}, seed=0
    )
    torch.save(other.state_dict(), folder / "w.pt")
    return ["teacher.weights=w.pt"], "w.pt does not fit MLP: 2 missing (fc3.weight, fc3.bias)"


def _objects(folder):
    torch.save(nn.Linear(2, 2), folder / "w.pt")
    return ["teacher.weights=w.pt"], "w.pt: holds Python objects"


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
    ], fault("student._target_", "no_net.Net", "no module named")


def _no_module(folder):
    (folder / "my_net.py").write_text("def net(num_classes):\n    return 3\n")
    return [
        "student=custom",
        "student._target_=my_net.net",
    ], "expected it to construct a torch.nn.Module, got int"


def _raising(folder):
    (folder / "raising_net.py").write_text("def net(num_classes):\n    return {}['x']\n")
    return ["student=custom", "student._target_=raising_net.net"], fault("student", "KeyError", "x")


def _output_is_a_file(folder):
    (folder / "out").write_text("")
    return ["outputs_dir=out"], fault("outputs_dir")


def _run_is_a_file(folder):
    (folder / "out").write_text("")
    return ["hydra.run.dir=out/run"], fault("outputs_dir", "cannot be written", "hydra.run.dir=DIR")


def _yaml(folder):
    (folder / "conf" / "kd").mkdir(parents=True)
    (folder / "conf" / "kd" / "mine.yaml").write_text("alpha: [1, 2\n")
    return ["--config-dir=conf", "kd=mine"], fault("kd", "mine")


FILES = [
    _corrupted, _corrupted_safetensors, _of_another_architecture, _objects, _not_of_the_layout, _broken_module,
    _no_such_module, _no_module, _raising, _output_is_a_file, _run_is_a_file, _yaml,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("prepare", FILES, ids=lambda f: f.__name__.strip("_").replace("_", " "))
def test_file_is_refused(run_cli, work, prepare):
    typed, needle = prepare(work)
    before = {path.name for path in work.iterdir()}
    outcome = run_cli(*([] if "data=image_folder" in typed else DATA), *typed)
    told(outcome, needle)
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


@pytest.mark.slow
def test_a_finished_run_is_left_alone(run_cli, finished):
    before = _content(finished)
    told(
        run_cli(*TINY, "hydra.run.dir=run"), "holds a finished run, which is never overwritten; write another"
    )
    told(run_cli("resume", "run"), "run is finished; there is nothing to resume")
    assert _content(finished) == before


def test_an_unfinished_run_of_another_configuration_is_left_alone(run_cli, finished):
    _unfinish(finished)
    before = _content(finished)
    outcome = run_cli(*TINY, "hydra.run.dir=run", "rank=3")
    told(
        outcome, "holds an unfinished run of another configuration (", "rank: 32, now 3", "compresskd resume"
    )
    assert _content(finished) == before


def test_a_run_in_use_is_left_alone(run_cli, work):
    held = open_run(work / "run")
    try:
        told(
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
    told(run_cli("resume", "run"), f"{Path('run') / 'record.json'} cannot be read: ")
    told(run_cli(*TINY, "hydra.run.dir=run"), "record.json cannot be read: ")
    assert (finished / "record.json").read_text() == text


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_resume_needs_a_whole_training_checkpoint(run_cli, finished, damage):
    _unfinish(finished)
    checkpoint = finished / "checkpoints" / "training.ckpt"
    content = b"compresskd-checkpoint-1\n" + bytes(100)
    checkpoint.write_bytes({"cut": content[:30], "flipped": content, "foreign": b"PK"}[damage])
    told(run_cli("resume", "run"), "training.ckpt is ", "remove it to repeat the stage")
    assert json.loads((finished / "record.json").read_text())["status"] != "finished"


def test_resume_names_data_that_has_gone(run_cli, finished):
    _unfinish(finished)
    record = json.loads((finished / "record.json").read_text())
    record["config"]["data"] = {**record["config"]["data"], "_target_": "gone_data.load"}
    (finished / "record.json").write_text(json.dumps(record))
    told(
        run_cli("resume", "run"),
        fault("data._target_", "gone_data.load", "not part of compresskd"),
        "--trust gone_data",
    )
    said = run_cli("resume", "run", "--trust", "gone_data")
    told(said, fault("data._target_", "gone_data.load", "no module named"))


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
    outcome = run_cli(*TINY, f"outputs_dir={disk}/out")
    refused(outcome, fault("outputs_dir", "cannot be written", "Read-only file system"))


# 30k: the record does not fit when the run fails; 60k: the model does not; 200k: the training checkpoint does not
@pytest.mark.slow
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
