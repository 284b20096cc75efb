"""What can be known before training is refused before training: what is typed, and what the one message must say."""

import os
import sys

import pytest
from refusals import fault, refused

from compresskd.config.overrides import MOST_JOBS

pytestmark = pytest.mark.slow

DATA = ("data=synthetic", "data.num_train=64", "data.num_test=16")
LONG = "a" * 300

OVERRIDES = {
    # optimizers and schedules
    "one beta": ("optimizer.betas=[0.9]", fault("optimizer.betas", "[0.9]")),
    "betas of 1": ("optimizer.betas=[1,1]", fault("optimizer.betas", "[1, 1]")),
    "word among betas": ("optimizer.betas=[a,0.9]", fault("optimizer.betas[0]", "a number")),
    "eps below 0": ("optimizer.eps=-1", fault("optimizer.eps", "-1")),
    "rate of a slip": ("optimizer.lr=1e10", fault("optimizer.lr", "10000000000.0")),
    "teacher's betas": ("teacher_fit.optimizer.betas=[0.9]", fault("teacher_fit.optimizer.betas", "[0.9]")),
    "another optimizer": ("optimizer._target_=torch.optim.LBFGS", fault("optimizer.betas", "unknown option", "LBFGS")),
    "milestone in epochs": (
        ["scheduler=multistep", "scheduler.milestones=[2]"],
        fault("scheduler.milestones[0]", "2", "1"),
    ),
    "unordered milestones": (
        ["scheduler=multistep", "scheduler.milestones=[0.7,0.2]"],
        fault("scheduler.milestones", "[0.7, 0.2]"),
    ),
    "no milestones": (["scheduler=multistep", "scheduler.milestones=[]"], fault("scheduler.milestones", "[]")),
    "gamma 0": (["scheduler=multistep", "scheduler.gamma=0"], fault("scheduler.gamma", "0")),
    "gamma above 1": (["scheduler=multistep", "scheduler.gamma=3"], fault("scheduler.gamma", "3")),
    "pct_start": (["scheduler=one_cycle", "scheduler.pct_start=1"], fault("scheduler.pct_start", "1")),
    "div_factor": (["scheduler=one_cycle", "scheduler.div_factor=0"], fault("scheduler.div_factor", "0", "1")),
    "final_div_factor": (
        ["scheduler=one_cycle", "scheduler.final_div_factor=0"],
        fault("scheduler.final_div_factor", "0", "1"),
    ),
    "final_fraction": ("scheduler.final_fraction=2", fault("scheduler.final_fraction", "2", "1")),
    "warm-up of a stage": (
        ["scheduler.warmup_epochs=3", "strategy.stages.finetune.epochs=2"],
        fault("scheduler.warmup_epochs", "3", "0", "2"),
    ),
    "rate of a stage": (
        "+strategy.stages.finetune.learning_rate=1e30",
        fault("strategy.stages.finetune.learning_rate", "1e+30", "1000"),
    ),
    "rate of quantization": (["bits=4", "quant.learning_rate=1e30"], fault("quant.learning_rate", "1e+30")),
    "clip that clips all": ("train.gradient_clip=1e-30", fault("train.gradient_clip", "1e-30", "null")),
    # numbers that no float32 holds, wherever they stand
    "tiny clip": ("train.gradient_clip=1e-300", fault("train.gradient_clip", "1e-300", "0", "1.2e-38", "3.4e+38")),
    "huge temperature": ("kd.temperature=1e300", fault("kd.temperature", "1e+300", "0", "1.2e-38", "3.4e+38")),
    "hot": ("kd.temperature=1e7", fault("kd.temperature", "1e+06", "10000000.0")),
    "cold": ("kd.temperature=1e-9", fault("kd.temperature", "0.001")),
    "nan": ("compress.max_drop=nan", fault("compress.max_drop", "nan")),
    "inf": ("quant.entropy=inf", fault("quant.entropy", "inf")),
    "nan in a list": ("optimizer.betas=[nan,0.9]", fault("optimizer.betas[0]", "nan")),
    "nan in a recipe": ("teacher_fit.optimizer.lr=nan", fault("teacher_fit.optimizer.lr", "nan")),
    "many digits": ("train.batch_size=99999999999999999999", fault("train.batch_size", "at most 63")),
    "weight of a hint": (
        ["kd=fitnets", "kd.feature_weight=1e30"],
        fault("kd.objective", "1e+30", "finite"),
    ),
    # sizes, by shapes alone
    "modes": (
        "compress.modes={fc1: [[3,3],[4,4]]}",
        fault("compress.modes", "1", "64", "fc1"),
    ),
    "modes of unequal length": ("compress.modes={fc1: [[8,8],[128]]}", fault("compress.modes", "fc1")),
    "number of ranks": (
        ["compress.modes={fc1: [[4,4,4],[4,8,4]]}", "compress.ranks={fc1: [4]}"],
        fault("compress.modes", "2", "3", "fc1"),
    ),
    "number of cores": ("compress.num_cores=7", fault("compress.num_cores", "7", "4", "null")),
    "budget of parameters": ("compress.budget=0.0001", fault("compress.budget", "0.0001", "25,348")),
    "budget of macs": (
        ["compress.budget=0.0001", "compress.budget_of=macs"],
        fault("compress.budget", "0.0001", "multiply-accumulates"),
    ),
    "compensation of fresh factors": (
        ["strategy=distill_to_compressed", "compress.compensation=sequential"],
        fault("compress.compensation", "sequential", "none"),
    ),
    "budget of a file": ("quant.budget=0.0001", fault("quant.budget", "0.0001")),
    "no width": (["strategy=distill_matched", "student=vit_tiny", "student.patch=4"], "has no option for its width"),
    # kinds of values
    "mapping for bool": ("quant.data_aware={}", fault("quant.data_aware", "{}", "true", "false")),
    "mapping for bool in kd": ("kd.standardize={a: 1}", fault("kd.standardize", "{'a': 1}", "true", "false")),
    "mapping for number": ("kd.temperature={a: 1}", fault("kd.temperature", "{'a': 1}")),
    "list for path": ("teacher.weights=[]", fault("teacher.weights", "list")),
    "list for mapping": ("compress.ranks=[1]", fault("compress.ranks", "[1]", "{a: b}", "null")),
    "number for mapping": (["bits=4", "quant.layers=3"], fault("quant.layers", "3", "{a: b}", "null")),
    "word in a list": ("student.hidden=[8,b]", fault("student.hidden[1]", "b")),
    "word in a mapping": ("compress.ranks={fc1: a}", fault("compress.ranks.fc1", "a")),
    "word for an object": ("data.augmentation=2", fault("data.augmentation", "2", "_target_")),
    "number for stages": ("++strategy.stages=3", fault("strategy.stages", "3")),
    "nothing for options": ("strategy.stages={}", fault("strategy.stages", "changes nothing", "{}", "'")),
    "nothing for a choice": ("optimizer=[]", fault("optimizer", "[]")),
    # keys that nothing reads, and keys that something reads
    "unknown by ++": ("++nosuch=1", fault("nosuch", "unknown option", "data", "teacher")),
    "unknown in a group by ++": ("++kd.nosuch=1", fault("kd.nosuch", "nothing reads")),
    "unknown by a mapping": ("+kd={nosuch: 1}", fault("kd.nosuch", "nothing reads")),
    "unknown and empty": ("++kd.nosuch={}", fault("kd.nosuch", "nothing reads")),
    "unknown of the strategy": ("++strategy.nosuch=1", fault("strategy.nosuch", "nothing reads")),
    "unknown of the teacher's recipe": ("++teacher_fit.nosuch=1", fault("teacher_fit.nosuch", "unknown option")),
    "unknown argument by ++": ("++optimizer.nosuch=1", fault("optimizer.nosuch", "unknown option", "AdamW")),
    "removed top key": ("~seed", fault("seed", "is missing", "seed=VALUE")),
    "removed key and value": ("~rank=32", fault("compress.rank", "'rank' not found")),
    "removed reference": ("~kd.temperature", fault("kd.objective.terms.soft_targets.temperature", "not found")),
    "removed recipe key": ("~train.batch_size", fault("train.batch_size", "is missing")),
    "removed group": ("~optimizer", fault("~optimizer", "${optimizer}")),
    # Hydra's own
    "search path": ("hydra.searchpath=[http://x]", fault("hydra.searchpath", "http:/x")),
    "absent search path": ("hydra.searchpath=[nowhere]", fault("hydra.searchpath", "nowhere")),
    "chdir": ("hydra.job.chdir=true", fault("hydra.job.chdir", "true")),
    # places
    "long folder": (f"outputs_dir={LONG}", fault("outputs_dir", "cannot be written", "File name too long")),
    "long path": (f"outputs_dir={'a/' * 3000}b", fault("outputs_dir", "cannot be written")),
    "long folder of a run": (f"hydra.run.dir={LONG}", fault("outputs_dir", "cannot be written", "hydra.run.dir=DIR")),
    "long name": (f"strategy.name={LONG}", fault("strategy.name", "aaa")),
    # proposals, which are tried
    "umlaut": ("outputs_dir=größe", "outputs_dir=größe: is no override; write"),
    "mail": ("outputs_dir=me@host#1", "outputs_dir=me@host#1: is no override; write"),
    "quoted keys": (
        'compress.ranks={layer1.0.conv1: 4, "layer2.*": 8}',
        "compress.ranks={layer1.0.conv1: 4, \"layer2.*\": 8}: is",
    ),
    "umlaut in a list": ("compress.include=[größe]", "is no override; write"),
    "space in a key": ("a b=3", fault("a b=3", "is no override", "_")),
    "brackets without end": (f"rank={'[' * 500}", "(505 characters): is no override"),
    "digits without end": (f"rank={'9' * 5000}", "(5005 characters): is no override"),
}  # fmt: skip


@pytest.mark.parametrize(("override", "needle"), OVERRIDES.values(), ids=OVERRIDES)
def test_override_is_refused(run_cli, override, needle):
    typed = [override] if isinstance(override, str) else override
    rank = [] if any(line.startswith(("rank", "~rank")) for line in typed) else ["rank=8"]
    refused(run_cli(*DATA, *rank, *typed), needle)


SWEEPS = {
    "a million": (
        "rank=range(1,1000000)",
        fault("rank", "20,001", "20,000"),
    ),
    "thirty thousand": (
        "rank=range(1,30001)",
        fault("rank", "20,001", "20,000"),
    ),
    "endless": ("kd.alpha=range(0,1,1e-300)", fault("kd.alpha")),
    "no step": ("rank=range(1,5,0)", fault("rank", "stands for no value", "range(1,5,0)")),
    "no value": ("rank=range(5,1)", fault("rank", "stands for no value", "range(5,1)")),
    "to infinity": ("rank=range(1,inf)", fault("rank", "20,001", "20,000")),
    "glob of no group": (
        "rank=glob(*)",
        fault("rank", "stands for no value", "glob(*)"),
    ),
    "an interval": ("kd.alpha=interval(0,1)", fault("kd.alpha", "interval(0,1)", "kd.alpha=A,B")),
    "glob of nothing": ("kd=glob(x*)", fault("kd", "stands for no value", "glob(x*)")),
}


@pytest.mark.parametrize(("override", "needle"), SWEEPS.values(), ids=SWEEPS)
def test_sweep_is_counted_before_it_is_made(run_cli, override, needle):
    refused(run_cli("-m", *DATA, override), needle)


def test_counts_of_several_keys_multiply(run_cli):
    text = fault("rank", "40,000", "rank: 200 values, seed: 200 values", "20,000")
    refused(run_cli("-m", *DATA, "rank=range(1,201)", "seed=range(0,200)"), text)
    assert MOST_JOBS == 20_000


def test_of_very_many_jobs_each_value_that_is_no_number_is_checked_first(run_cli):
    values = ("rank=range(1,401)", "seed=range(0,10)", "kd=none,distt,soft_targets")
    refused(run_cli("-m", *DATA, *values), fault("kd", "did you mean dist"))


def test_glob_chooses_among_the_files_of_a_group(run_cli):
    outcome = run_cli("-m", *DATA, "rank=0", "kd=glob([d*,n*], exclude=none)")
    refused(outcome, fault("rank", "0", "1"))
    outcome = run_cli("-m", *DATA, "strategy=train", "epochs=0", "scheduler=glob(c*)")
    assert outcome.status == 0, outcome.err
    assert sum(path.endswith("record.json") for path in outcome.left) == 2


COMMANDS = {
    "bench without a rank": (
        ["bench", "--layer", "64x64", "--rank", "0"],
        fault("--rank", "0", "1"),
    ),
    "bench of nothing": (
        ["bench", "--layer", "0x64"],
        fault("--layer", "0x64"),
    ),
    "bench of an empty batch": (
        ["bench", "--layer", "8x8", "--batch", "0"],
        fault("--batch", "0", "1"),
    ),
    "bench on no thread": (
        ["bench", "--layer", "8x8", "--threads", "0"],
        fault("--threads", "0", "1"),
    ),
    "bench of nine cores": (["bench", "--layer", "8x8", "--cores", "9"], fault("--cores", "9", "4")),
    "resume with a change": (
        ["resume", "run", "epochs=90"],
        fault("resume", "epochs=90"),
    ),
}


@pytest.mark.parametrize(("arguments", "needle"), COMMANDS.values(), ids=COMMANDS)
def test_command_is_refused(run_cli, arguments, needle):
    refused(run_cli(*arguments), needle)


def test_a_dangling_link_is_no_folder_for_outputs(run_cli, work):
    (work / "link").symlink_to(work / "nowhere")
    for folder in ("link", "link/below"):
        refused(
            run_cli(*DATA, "rank=8", f"outputs_dir={folder}"),
            fault("outputs_dir", "cannot be written"),
        )


def test_a_working_directory_that_is_gone_is_named(run_cli, work):
    gone = work / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    refused(run_cli(*DATA, "rank=0"), "the working directory is not there any more")


def test_what_a_person_named_may_be_left_out(run_cli):
    outcome = run_cli(
        "--cfg", "job", "~strategy.stages.finetune", "~kd.objective.terms.soft_targets", "~experiment"
    )
    assert outcome.status == 0, outcome.err
    assert "soft_targets:" not in outcome.out


def test_a_key_of_a_file_that_nothing_reads_is_refused(run_cli, work):
    (work / "conf" / "experiment").mkdir(parents=True)
    (work / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nkd: {temprature: 3}\n")
    outcome = run_cli("--config-dir", "conf", *DATA, "experiment=mine", "rank=8")
    refused(outcome, fault("kd.temprature", "nothing reads"))


# Models


MODELS = """
import torch
from torch import nn
from torch.nn import functional as F

class Plain(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, num_classes)
        self.norm = nn.Identity()
    def forward(self, x):
        return self.last(F.relu(self.inner(F.relu(self.norm(self.first(x.flatten(1)))))))

class Norm(Plain):
    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(64)

class Tuple(Plain):
    def forward(self, x):
        y = super().forward(x)
        return ((y,), y) if self.training else y

class Dict(Plain):
    def forward(self, x):
        y = super().forward(x)
        return {"scores": y} if self.training else y

class Lazy(Plain):
    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.inner = nn.LazyLinear(64)

class Double(Plain):
    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.double()
    def forward(self, x):
        return super().forward(x.double())

class Complex(Plain):
    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))

class Nan(Plain):
    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        nn.init.constant_(self.last.bias, float("nan"))

class NanInTraining(Plain):
    def forward(self, x):
        return super().forward(x) * (float("nan") if self.training else 1.0)

class Frozen(Plain):
    def __init__(self, num_classes=4):
        super().__init__(num_classes)
        self.requires_grad_(False)

class Detached(Plain):
    def forward(self, x):
        return super().forward(x).detach()

class InPlace(Plain):
    def forward(self, x):
        y = torch.sigmoid(self.first(x.flatten(1)))
        z = torch.sigmoid(self.inner(y))
        z += 1
        return self.last(z)

class Squeezed(Plain):
    def forward(self, x):
        return super().forward(x).squeeze()

class FixedBatch(Plain):
    def forward(self, x):
        return super().forward(x.reshape(32, 64) if self.training else x)

class Raising(Plain):
    def forward(self, x):
        if self.training:
            raise KeyError("boom")
        return super().forward(x)
"""
SMALL = (
    "data=synthetic",
    "measure.latency=false",
    "data.num_train=88",
    "data.num_test=16",
    "rank=4",
    "epochs=1",
    "train.batch_size=32",
)
FAULTY = {  # 70 training samples: two batches of 32 and one of 6
    "Tuple": fault("student", "training mode", "logits", "tuple"),
    "Dict": fault("student", "training mode", "logits", "dict"),
    "Lazy": "the shape of inner.weight, inner.bias is not known before data come (a lazy layer); write its sizes",
    "Double": fault("student", "first.weight", "float32", "float64"),
    "Complex": fault("student", "float32", "complex64"),
    "Nan": fault("student", "finite"),
    "NanInTraining": fault("student", "finite"),
    "Frozen": fault("student", "no trainable parameter"),
    "Detached": fault("student", "does not require grad"),
    "InPlace": fault("student", "modified"),
    "Squeezed": fault("student", "[4]", "1", "[1, 4]"),
    "FixedBatch": fault("student", "6", "[32, 64]"),
    "Raising": fault("student", "32", "boom"),
}


@pytest.fixture
def models(work):
    (work / "trial_models.py").write_text(MODELS)
    yield
    sys.modules.pop("trial_models", None)


@pytest.mark.parametrize(("name", "needle"), FAULTY.items(), ids=FAULTY)
def test_a_model_that_cannot_be_trained_is_refused(run_cli, models, name, needle):
    refused(run_cli(*SMALL, "student=custom", f"student._target_=trial_models.{name}"), needle)


def test_a_teacher_that_cannot_be_trained_is_refused_by_its_own_keys(run_cli, models):
    teacher = ("teacher=custom", "teacher._target_=trial_models.Norm", "teacher_fit.train.batch_size=1")
    student = ("student=custom", "student._target_=trial_models.Tuple")
    outcome = run_cli(*SMALL, *teacher, *student)
    batch = fault("teacher_fit.train.batch_size", "1")
    refused(outcome, "2 faults", batch, fault("student", "training mode", "tuple"))
    outcome = run_cli(*SMALL, "teacher=custom", "teacher._target_=trial_models.Tuple")
    refused(outcome, "1 fault", fault("teacher", "training mode", "tuple"))


def test_a_batch_of_one_is_refused_where_batches_are_normalized(run_cli, models):
    norm = ("student=custom", "student._target_=trial_models.Norm")
    needle = fault("train.batch_size", "1")
    refused(run_cli(*SMALL, *norm, "train.batch_size=1"), needle)
    assert (
        run_cli(*SMALL, "strategy=train", *norm, "train.batch_size=23").status == 0
    )  # 70 = 3 x 23 + 1, left out


def test_the_trial_changes_nothing_of_a_run(run_cli, models, monkeypatch, work):
    """Its losses are those that they are without: no generator, no statistic, no model is touched by it."""
    typed = (*SMALL, "strategy=train", "student=custom", "student._target_=trial_models.Norm")
    assert run_cli(*typed, "hydra.run.dir=with").status == 0
    monkeypatch.setattr("compresskd.config.parts.try_training", lambda *_: None)
    assert run_cli(*typed, "hydra.run.dir=without").status == 0
    stored = [
        (work / name / "checkpoints/train/model.safetensors").read_bytes() for name in ("with", "without")
    ]
    assert stored[0] == stored[1]
