"""What can be known before training is refused before training: what is typed, and what the one message must say."""

import os
import sys

import pytest

from compresskd.config.overrides import MOST_JOBS

DATA = ("data=synthetic", "data.num_train=64", "data.num_test=16")
LONG = "a" * 300

OVERRIDES = {
    # optimizers and schedules
    "one beta": ("optimizer.betas=[0.9]", "optimizer.betas: got "),
    "betas of 1": ("optimizer.betas=[1,1]", "optimizer.betas: got "),
    "word among betas": ("optimizer.betas=[a,0.9]", "optimizer.betas[0]: got "),
    "eps below 0": ("optimizer.eps=-1", "optimizer.eps: got "),
    "rate of a slip": ("optimizer.lr=1e10", "optimizer.lr: got "),
    "teacher's betas": ("teacher_fit.optimizer.betas=[0.9]", "teacher_fit.optimizer.betas: got "),
    "another optimizer": ("optimizer._target_=torch.optim.LBFGS", "optimizer.betas: unknown option of torch.optim.LB"),
    "milestone in epochs": (
        ["scheduler=multistep", "scheduler.milestones=[2]"],
        "scheduler.milestones[0]: got ",
    ),
    "unordered milestones": (
        ["scheduler=multistep", "scheduler.milestones=[0.7,0.2]"],
        "scheduler.milestones: got ",
    ),
    "no milestones": (["scheduler=multistep", "scheduler.milestones=[]"], "scheduler.milestones: got "),
    "gamma 0": (["scheduler=multistep", "scheduler.gamma=0"], "scheduler.gamma: got "),
    "gamma above 1": (["scheduler=multistep", "scheduler.gamma=3"], "scheduler.gamma: got "),
    "pct_start": (["scheduler=one_cycle", "scheduler.pct_start=1"], "scheduler.pct_start: got "),
    "div_factor": (["scheduler=one_cycle", "scheduler.div_factor=0"], "scheduler.div_factor: got "),
    "final_div_factor": (
        ["scheduler=one_cycle", "scheduler.final_div_factor=0"],
        "scheduler.final_div_factor: got ",
    ),
    "final_fraction": ("scheduler.final_fraction=2", "scheduler.final_fraction: got "),
    "warm-up of a stage": (
        ["scheduler.warmup_epochs=3", "strategy.stages.finetune.epochs=2"],
        "scheduler.warmup_epochs: got ",
    ),
    "rate of a stage": (
        "+strategy.stages.finetune.learning_rate=1e30",
        "strategy.stages.finetune.learning_rate: got ",
    ),
    "rate of quantization": (["bits=4", "quant.learning_rate=1e30"], "quant.learning_rate: got "),
    "clip that clips all": ("train.gradient_clip=1e-30", "train.gradient_clip: got "),
    # numbers that no float32 holds, wherever they stand
    "tiny clip": ("train.gradient_clip=1e-300", "train.gradient_clip: got "),
    "huge temperature": ("kd.temperature=1e300", "kd.temperature: got "),
    "hot": ("kd.temperature=1e7", "kd.temperature: got "),
    "cold": ("kd.temperature=1e-9", "kd.temperature: got "),
    "nan": ("compress.max_drop=nan", "compress.max_drop: got "),
    "inf": ("quant.entropy=inf", "quant.entropy: got "),
    "nan in a list": ("optimizer.betas=[nan,0.9]", "optimizer.betas[0]: got "),
    "nan in a recipe": ("teacher_fit.optimizer.lr=nan", "teacher_fit.optimizer.lr: got "),
    "many digits": ("train.batch_size=99999999999999999999", "train.batch_size: got "),
    "weight of a hint": (
        ["kd=fitnets", "kd.feature_weight=1e30"],
        "kd.objective: got ",
    ),
    # sizes, by shapes alone
    "modes": (
        "compress.modes={fc1: [[3,3],[4,4]]}",
        "compress.modes: got ",
    ),
    "modes of unequal length": ("compress.modes={fc1: [[8,8],[128]]}", "compress.modes: got "),
    "number of ranks": (
        ["compress.modes={fc1: [[4,4,4],[4,8,4]]}", "compress.ranks={fc1: [4]}"],
        "compress.modes: got ",
    ),
    "number of cores": ("compress.num_cores=7", "compress.num_cores: got "),
    "budget of parameters": ("compress.budget=0.0001", "compress.budget: got "),
    "budget of a file": ("quant.budget=0.0001", "quant.budget: got "),
    "no width": (["strategy=distill_matched", "student=vit_tiny", "student.patch=4"], "has no option for its width"),
    # kinds of values
    "mapping for bool": ("compress.data_aware={}", "compress.data_aware: got "),
    "mapping for bool in kd": ("kd.standardize={a: 1}", "kd.standardize: got "),
    "mapping for number": ("kd.temperature={a: 1}", "kd.temperature: got "),
    "list for path": ("teacher.weights=[]", "teacher.weights: got "),
    "list for mapping": ("compress.ranks=[1]", "compress.ranks: got "),
    "number for mapping": (["bits=4", "quant.layers=3"], "quant.layers: got "),
    "word in a list": ("student.hidden=[8,b]", "student.hidden[1]: got "),
    "word in a mapping": ("compress.ranks={fc1: a}", "compress.ranks.fc1: got "),
    "word for an object": ("data.augmentation=2", "data.augmentation: got "),
    "number for stages": ("++strategy.stages=3", "strategy.stages: got "),
    "nothing for options": ("strategy.stages={}", "strategy.stages: got "),
    "nothing for a choice": ("optimizer=[]", "optimizer: got "),
    # keys that nothing reads, and keys that something reads
    "unknown by ++": ("++nosuch=1", "nosuch: unknown option; expected data,"),
    "unknown in a group by ++": ("++kd.nosuch=1", "kd.nosuch: nothing reads this key; take it away"),
    "unknown by a mapping": ("+kd={nosuch: 1}", "kd.nosuch: nothing reads this key; take it away"),
    "unknown and empty": ("++kd.nosuch={}", "kd.nosuch: nothing reads this key"),
    "unknown of the strategy": ("++strategy.nosuch=1", "strategy.nosuch: nothing reads this key"),
    "unknown of the teacher's recipe": ("++teacher_fit.nosuch=1", "teacher_fit.nosuch: nothing reads this key"),
    "unknown argument by ++": ("++optimizer.nosuch=1", "optimizer.nosuch: unknown option of torch.optim.AdamW"),
    "removed top key": ("~seed", "~seed: cannot be left out: something reads it; write seed=VALUE"),
    "removed key and value": ("~rank=32", "~rank: cannot be left out: something reads it; write rank=VALUE"),
    "removed option": ("~optimizer.lr", "~optimizer.lr: cannot be left out: something reads it"),
    "removed reference": ("~kd.temperature", "~kd.temperature: cannot be left out"),
    "removed recipe key": ("~train.batch_size", "~train.batch_size: cannot be left out"),
    "removed group": ("~optimizer", "~optimizer: cannot be left out;"),
    "removed inner group": ("~data/augmentation", "~data/augmentation: cannot be left out; write"),
    # Hydra's own
    "search path": ("hydra.searchpath=[http://x]", "hydra.searchpath: got "),
    "absent search path": ("hydra.searchpath=[nowhere]", "hydra.searchpath: got "),
    "chdir": ("hydra.job.chdir=true", "hydra.job.chdir: got "),
    # places
    "long folder": (f"outputs_dir={LONG}", "characters), which cannot be written ("),
    "long path": (f"outputs_dir={'a/' * 3000}b", "File name too long); write outputs_dir=DIR"),
    "long folder of a run": (f"hydra.run.dir={LONG}", "hydra.run.dir: got "),
    "long name": (f"strategy.name={LONG}", "strategy.name: got "),
    # proposals, which are tried
    "umlaut": ("outputs_dir=größe", "outputs_dir=größe: is no override; write"),
    "mail": ("outputs_dir=me@host#1", "outputs_dir=me@host#1: is no override; write"),
    "quoted keys": (
        'compress.ranks={layer1.0.conv1: 4, "layer2.*": 8}',
        "compress.ranks={layer1.0.conv1: 4, \"layer2.*\": 8}: is",
    ),
    "umlaut in a list": ("compress.include=[größe]", "compress.include=[größe]: is no override; write"),
    "space in a key": ("a b=3", "a b=3: is no override; a key has letters, digits, _ and dots"),
    "brackets without end": (f"rank={'[' * 500}", "(505 characters): is no override"),
    "digits without end": (f"rank={'9' * 5000}", "(5005 characters): is no override"),
}  # fmt: skip


def refused(outcome, *needles):
    assert outcome.status == 2, outcome.err
    assert outcome.left == []
    assert "Traceback" not in outcome.out + outcome.err
    for needle in needles:
        assert needle in outcome.err


@pytest.mark.parametrize(("override", "needle"), OVERRIDES.values(), ids=OVERRIDES)
def test_override_is_refused(run_cli, override, needle):
    typed = [override] if isinstance(override, str) else override
    rank = [] if any(line.startswith(("rank", "~rank")) for line in typed) else ["rank=8"]
    refused(run_cli(*DATA, *rank, *typed), needle)


SWEEPS = {
    "a million": (
        "rank=range(1,1000000)",
        "rank: got 999,999 jobs (rank: 999,999 values), expected <= 1,000",
    ),
    "ten thousand": (
        "rank=range(1,10001)",
        "rank: got 10,000 jobs (rank: 10,000 values), expected <= 1,000",
    ),
    "endless": ("kd.alpha=range(0,1,1e-300)", "kd.alpha: "),
    "no step": ("rank=range(1,5,0)", "rank: got range(1,5,0), which stands for no value; write rank=A,B"),
    "no value": ("rank=range(5,1)", "rank: got range(5,1), which stands for no value"),
    "to infinity": ("rank=range(1,inf)", "rank: got range(1,inf), which stands for no value"),
    "glob of no group": (
        "rank=glob(*)",
        "rank: got glob(*), which stands for no value",
    ),
    "glob of nothing": ("kd=glob(x*)", "kd: got glob(x*), which stands for no value"),
}


@pytest.mark.parametrize(("override", "needle"), SWEEPS.values(), ids=SWEEPS)
def test_sweep_is_counted_before_it_is_made(run_cli, override, needle):
    refused(run_cli("-m", *DATA, override), needle)


def test_counts_of_several_keys_multiply(run_cli):
    text = "rank: got 2,000 jobs (rank: 200 values, seed: 10 values), expected <= 1,000"
    refused(run_cli("-m", *DATA, "rank=range(1,201)", "seed=range(0,10)"), text)
    assert MOST_JOBS == 1000


def test_glob_chooses_among_the_files_of_a_group(run_cli):
    outcome = run_cli("-m", *DATA, "rank=0", "kd=glob([d*,n*], exclude=none)")
    refused(outcome, "rank: got 0, expected >= 1")
    outcome = run_cli("-m", *DATA, "strategy=train", "epochs=0", "scheduler=glob(c*)")
    assert outcome.status == 0, outcome.err
    assert sum(path.endswith("record.json") for path in outcome.left) == 2


COMMANDS = {
    "bench without a rank": (
        ["bench", "--layer", "64x64", "--rank", "0"],
        "--rank: got 0, expected 1 or more",
    ),
    "bench of nothing": (
        ["bench", "--layer", "0x64"],
        "--layer: got 0x64; write a run's folder, or --layer MxN",
    ),
    "bench of an empty batch": (
        ["bench", "--layer", "8x8", "--batch", "0"],
        "--batch: got 0; write sizes of 1",
    ),
    "bench on no thread": (
        ["bench", "--layer", "8x8", "--threads", "0"],
        "--threads: got 0, expected 1 or more",
    ),
    "bench of nine cores": (["bench", "--layer", "8x8", "--cores", "9"], "--cores: got 9, expected up to 4"),
    "resume with a change": (
        ["resume", "run", "epochs=90"],
        "resume: got epochs=90; a run resumes as it was begun; write compresskd resume run, or begin another run",
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
            "/link is a link to what is not there); write out",
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
    refused(outcome, "kd.temprature: nothing reads this key")


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
        return (y, y) if self.training else y

class Dict(Plain):
    def forward(self, x):
        y = super().forward(x)
        return {"logits": y} if self.training else y

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
    "data.num_train=88",
    "data.num_test=16",
    "rank=4",
    "epochs=1",
    "train.batch_size=32",
)
FAULTY = {  # 70 training samples: two batches of 32 and one of 6
    "Tuple": "student: got 'Tuple', expected a model that returns logits [B, K] in training mode, not a tuple",
    "Dict": "student: got 'Dict', expected a model that returns logits [B, K] in training mode, not a dict",
    "Lazy": "the shape of inner.weight, inner.bias is not known before data come (a lazy layer); write its sizes",
    "Double": "student: got 'first.weight of float64', expected float32 parameters",
    "Complex": "student: got 'phase of complex64', expected float32 parameters",
    "Nan": "student: got 'Nan', expected a model that returns finite values on training samples before",
    "NanInTraining": "student: got 'NanInTraining', expected a model that returns finite values on training",
    "Frozen": "student: got 'Frozen', expected a model that can be trained: the model has no trainable parameter",
    "Detached": "student: got 'Detached', expected a model that can be trained: element 0 of tensors does not",
    "InPlace": "student: got 'InPlace', expected a model that can be trained: one of the variables needed for",
    "Squeezed": "student: got [4], expected logits [1, 4]",
    "FixedBatch": "student: got 'FixedBatch', expected a model that trains on a batch of 6: shape '[32, 64]' is",
    "Raising": "student: got 'Raising', expected a model that trains on a batch of 32: 'boom'",
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
    batch = (
        "teacher_fit.train.batch_size: got 1, expected another size: the teacher does not train on a batch"
    )
    refused(outcome, "2 faults", batch, "student: got 'Tuple'", "not a tuple")
    outcome = run_cli(*SMALL, "teacher=custom", "teacher._target_=trial_models.Tuple")
    refused(outcome, "1 fault", "teacher: got 'Tuple'", "not a tuple")


def test_a_batch_of_one_is_refused_where_batches_are_normalized(run_cli, models):
    norm = ("student=custom", "student._target_=trial_models.Norm")
    needle = "train.batch_size: got 1, expected another size: the student does not train on a batch"
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
