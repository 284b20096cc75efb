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
    "teacher": ("teacher=resnet57", "teacher: came resnet57; did you mean resnet56?"),
    "strategy": ("strategy=destil", "strategy: came destil; did you mean distill?"),
    "kd": ("kd=softtargets", "kd: came softtargets; did you mean soft_targets?"),
    "no choice": ("strategy=null", "strategy: came null; allowed: "),
    "augmentation": ("data/augmentation=crop_flipp", "came crop_flipp; did you mean crop_flip?"),
    "experiment": ("experiment=nowhere", "experiment: came nowhere"),
    "hydra key": ("hydra.run.dirr=x", "hydra.run.dirr: unknown option; did you mean hydra.run.dir?"),
    "word for int": ("rank=abc", "rank: came abc; allowed: a whole number"),
    "float for int": ("epochs=1.5", "epochs: came 1.5; allowed: a whole number"),
    "null for int": ("seed=null", "seed: came null; allowed: a whole number"),
    "word for float": ("kd.temperature=hot", "kd.temperature: came 'hot' (str); allowed: number"),
    "word in a formula": ("kd.alpha=hot", "kd.alpha: came 'hot' (str); allowed: number"),
    "word for bool": ("train.compile=perhaps", "train.compile: came 'perhaps'; allowed: true, false"),
    "word for list": ("compress.include=fc1", "compress.include: came 'fc1' (str); allowed: list: [a, b]"),
    "value for mapping": ("optimizer=3", "optimizer: came 3"),
    "rank 0": ("rank=0", "rank: came 0; allowed: 1 or more"),
    "rank too large": ("rank=1000", "rank: came 1000; no layer gets smaller (fc"),
    "epochs": ("epochs=-1", "epochs: came -1; allowed: 0 or more"),
    "temperature": ("kd.temperature=0", "kd.temperature: expected a number above 0, got 0"),
    "alpha": ("kd.alpha=1.2", "kd.alpha: expected a number within 0..1, got 1.2"),
    "learning rate": ("optimizer.lr=-1", "optimizer.lr: came -1; allowed: a number greater than 0"),
    "batch size": ("train.batch_size=0", "train.batch_size: came 0; allowed: an integer, 1 or more"),
    "label smoothing": ("train.label_smoothing=1.5", "train.label_smoothing: expected a number from 0 to"),
    "seed": ("seed=-1", "seed: came -1; allowed: 0 to 9223372036854775807"),
    "teacher's recipe": ("teacher_fit.train.batch_size=0", "teacher_fit.train.batch_size: came 0; allowed"),
    "device": ("device=cdua", "device: came cdua; allowed: auto, cpu, cuda, cuda:N, mps"),
    "absent device": ("device=cuda:77", "device: came cuda:77, which this machine does not have; here: auto"),
    "precision": ("precision=fp8", "precision: came 'fp8'; allowed: fp32, bf16, fp16"),
    "malformed": ("rank==3", "rank==3: is no override; write rank=3, with one '='"),
    "bracket": ("rank=[3", "rank=[3: is no override; [] do not match"),
    "no key": ("=3", "=3: is no override: no key before the '='"),
    "sweep without -m": ("rank=4,8", "rank: came 4,8, a sweep; write -m to run one job for each"),
    "empty value": ("rank=", "rank: came nothing; allowed: a whole number"),
    "reference": ("rank=${nowhere}", "rank: came ${nowhere}; there is no key nowhere"),
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
    "no stage": ("strategy.stages.distill=null", "write '~strategy.stages.distill' to leave it out"),
    "name of a stage": (
        "+strategy.stages.teacher=${strategy.stages.distill}",
        "strategy.stages.teacher: teacher and targets are no names for stages",
    ),
    "strategy.name": ("strategy.name=a/b", "strategy.name: came 'a/b'; allowed: letters, digits"),
    "pattern": ("compress.include=[conv9]", "compress.include: 'conv9' fits no layer; the layers are fc1, fc2"),
    "class count": ("student.num_classes=7", "student.num_classes: came 7 classes; allowed: 4"),
    "option of a model": ("student.activation=rule", "student.activation: MLP: activation must be one of relu"),
    "missing target": ("student=custom", "student._target_: is missing; write the dotted path"),
    "wrong target": ("student._target_=torch.nn.Linearr", "torch.nn has no 'Linearr'; did you mean 'Linear'?"),
    "bits": ("bits=5", "bits: came 5; allowed: 2, 3, 4, 8, null"),
    "no bits": ("bits=0", "bits: came 0; allowed: 2, 3, 4, 8, null"),
    "word for bits": ("bits=four", "bits: came four; allowed: a whole number"),
    "bits without a stage": (
        ["bits=4", "~strategy.stages.quantize"],
        "bits: came 4, but strategy distill_then_compress has no stage that quantizes; write bits=null",
    ),
    "nothing but quantization": (
        ["~strategy.stages.distill", "~strategy.stages.factorize", "~strategy.stages.finetune"],
        "bits: came null, and the strategy does nothing but quantize; write bits=8",
    ),
    "bits and a budget": (
        ["bits=4", "quant.budget=5000"],
        "bits: came 4 with quant.budget=5000, which chooses bits; write bits=null",
    ),
    "option of quantization": ("quant.grd=affine", "quant.grd: unknown option; did you mean quant.grid?"),
    "unused layers": ("quant.layers={fc1: 4}", "quant.layers: came {'fc1': 4}, but bits is null; write bits=8"),
    "unused activations": ("quant.activation_bits=8", "quant.activation_bits: came 8, but bits is null"),
    "quant.mode": (["bits=4", "quant.mode=later"], "quant.mode: came 'later'; allowed: qat, ptq, none"),
    "pattern of quant.layers": (
        ["bits=4", "quant.layers={conv*: 8}"],
        "quant.layers: 'conv*' fits none of the layers ['fc1', 'fc2', 'fc3']",
    ),
    "bits of quant.layers": (
        ["bits=4", "quant.layers={fc1: 6}"],
        "quant.layers: came 6 for 'fc1'; allowed: 0 (floating point), 2, 3, 4, 8",
    ),
    "everything in float": (["bits=4", "quant.layers={fc*: 0}"], "quant: nothing to quantize"),
    "activation bits": (["bits=4", "quant.activation_bits=4"], "quant.activation_bits: came 4; allowed: 8, null"),
    "vector bits": (["bits=4", "quant.other_bits=12"], "quant.other_bits: came 12; allowed: 4, 8, 16, 32"),
    "ternary": (["bits=4", "quant.grid=ternary"], "quant.grid: came ternary with 4 bits; ternary weights take bits=2"),
    "granularity": (["bits=4", "quant.granularity=row"], "quant.granularity: came 'row'; allowed: tensor, channel"),
    "rank slices": (
        ["bits=4", "quant.granularity=rank_slice"],
        "quant.granularity: came 'rank_slice'; allowed: tensor, channel, or a whole number, the size of groups",
    ),
    "estimator": (["bits=4", "quant.estimator=lsq"], "quant.estimator: came 'lsq'; allowed: lsq, straight_th"),
    "batch norm": (["bits=4", "quant.batch_norm=late"], "quant.batch_norm: came 'late'; allowed: freeze, keep, fold"),
    "freeze": (["bits=4", "quant.freeze_fraction=2"], "quant.freeze_fraction: came 2; allowed: 0 to 1"),
    "entropy": (["bits=4", "quant.entropy=-1"], "quant.entropy: came -1; allowed: 0 or more"),
    "budget": ("quant.budget=1.5", "quant.budget: came 1.5; allowed: a whole number of bytes (2 or more), a share"),
    "tiny budget": ("quant.budget=100", "quant.budget: came 100"),
    "epochs of quantization": (["bits=4", "quant.epochs=-1"], "quant.epochs: came -1; allowed: 0 (no training)"),
    "weights": ("teacher.weights=/no/such.pt", "teacher.weights: /no/such.pt: no such file"),
    "validation": ("data.validation_fraction=1.5", "data.validation_fraction: expected a number between 0 and 1"),
    "empty outputs_dir": ("outputs_dir=", "outputs_dir: came nothing; write outputs_dir=DIR"),
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
    "config dir": (["--config-dir", "nowhere"], "--config-dir: came nowhere, which is no folder"),
    "config name": (["--config-name", "other", *DATA], "Cannot find primary config 'other'"),
    "config path": (["--config-path", "/no/such", *DATA], "Primary config directory not found"),
    "shown configuration": (["--cfg", "job", "rnak=1"], "rnak: unknown option; did you mean rank?"),
    "empty sweep value": (["-m", *DATA, "rank=4,"], "a value is missing after the last comma; write rank=4"),
    "resume without folder": (["resume"], ""),
    "model on data": (["student=lenet5"], "student: LeNet5 with padding 0 needs images of at least 16x16 pixels"),
    "teacher on data": (["teacher=lenet5"], "teacher: LeNet5 with padding 0 needs images of at least 16x16"),
    "no data path": (["data=mnist", "data.path=/no/such"], "data.path: came /no/such, which is not there"),
    "data path not given": (["data=image_folder"], "data.path: expected a folder with train/CLASS"),
    "classes of the teacher": (
        [*DATA, "teacher.num_classes=10", "student.num_classes=10"],
        "teacher.num_classes: came 10 classes; allowed: 4, as many as the data has",
    ),
    "hint": (
        [*DATA, "kd=fitnets", "kd.pairs={fc9: fc1}"],
        "kd.pairs: expected the name of a module of the student, got 'fc9'",
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
    refused(outcome, "2 faults", "rank: came 0", "data.path: came /no/such")


def test_verbose_adds_the_traceback(run_cli):
    outcome = run_cli(*DATA, "student.activation=rule", "--verbose")
    assert outcome.status == 2
    assert "Traceback" in outcome.err
    assert "in _activation" in outcome.err or "mlp.py" in outcome.err
    assert "compresskd: 1 fault; nothing was run:" in outcome.err


def test_every_job_of_a_sweep_is_checked_before_the_first(run_cli):
    outcome = run_cli("-m", *DATA, "rank=4,0", "seed=1,-2", "teacher=resnet57")
    refused(
        outcome,
        "rank: came 0; allowed: 1 or more (job rank=0,seed=1 and 1 more)",
        "seed: came -2; allowed: 0 to 9223372036854775807 (job rank=4,seed=-2 and 1 more)",
    )
    assert outcome.err.count("teacher: came resnet57") == 1  # in all jobs: told once, without a job


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
    return ["outputs_dir=out"], "outputs_dir: came "


def _run_is_a_file(folder):
    (folder / "out").write_text("")
    return ["hydra.run.dir=out/run"], "hydra.run.dir: came out/run, which cannot be written ("


def _yaml(folder):
    (folder / "conf" / "kd").mkdir(parents=True)
    (folder / "conf" / "kd" / "mine.yaml").write_text("alpha: [1, 2\n")
    return ["--config-dir=conf", "kd=mine"], "kd: came mine; "


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
        f"outputs_dir: came {disk}/out, which cannot be written ({disk}: Read-only file system); write outputs_dir=",
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
