"""What can be known before training is refused before training: what is typed, and what the one message must say."""

import os
import sys

import pytest

from compresskd.config.overrides import MOST_JOBS

DATA = ("data=synthetic", "data.num_train=64", "data.num_test=16")
LONG = "a" * 300

OVERRIDES = {
    # optimizers and schedules
    "one beta": ("optimizer.betas=[0.9]", "optimizer.betas: came [0.9]; refused: "),
    "betas of 1": ("optimizer.betas=[1,1]", "optimizer.betas: came [1, 1]; refused: Invalid beta parameter"),
    "word among betas": ("optimizer.betas=[a,0.9]", "optimizer.betas: came ['a', 0.9]; refused: "),
    "eps below 0": ("optimizer.eps=-1", "optimizer.eps: came -1; refused: Invalid epsilon value"),
    "rate of a slip": ("optimizer.lr=1e10", "optimizer.lr: came 10000000000.0; allowed: a number greater than"),
    "teacher's betas": ("teacher_fit.optimizer.betas=[0.9]", "teacher_fit.optimizer.betas: came [0.9]; refused: "),
    "another optimizer": ("optimizer._target_=torch.optim.LBFGS", "optimizer.betas: unknown option of torch.optim.LB"),
    "milestone in epochs": (
        ["scheduler=multistep", "scheduler.milestones=[2]"],
        "scheduler.milestones: came [2]; allowed: rising fractions of the training between 0 and 1",
    ),
    "unordered milestones": (
        ["scheduler=multistep", "scheduler.milestones=[0.7,0.2]"],
        "scheduler.milestones: came [0.7, 0.2]; allowed: rising fractions",
    ),
    "no milestones": (["scheduler=multistep", "scheduler.milestones=[]"], "scheduler.milestones: came []"),
    "gamma 0": (["scheduler=multistep", "scheduler.gamma=0"], "scheduler.gamma: came 0; allowed: above 0, at most 1"),
    "gamma above 1": (["scheduler=multistep", "scheduler.gamma=3"], "scheduler.gamma: came 3; allowed: above 0"),
    "pct_start": (["scheduler=one_cycle", "scheduler.pct_start=1"], "scheduler.pct_start: came 1; allowed: between"),
    "div_factor": (["scheduler=one_cycle", "scheduler.div_factor=0"], "scheduler.div_factor: came 0; allowed: 1 or"),
    "final_div_factor": (
        ["scheduler=one_cycle", "scheduler.final_div_factor=0"],
        "scheduler.final_div_factor: came 0; allowed: 1 or more",
    ),
    "final_fraction": ("scheduler.final_fraction=2", "scheduler.final_fraction: came 2; allowed: 0 to 1"),
    "warm-up of a stage": (
        ["scheduler.warmup_epochs=3", "strategy.stages.finetune.epochs=2"],
        "scheduler.warmup_epochs: came 3; allowed: 0 or more, and less than the 2 epochs of this training "
        "(stage finetune)",
    ),
    "rate of a stage": (
        "+strategy.stages.finetune.learning_rate=1e30",
        "strategy.stages.finetune.learning_rate: came 1e+30; allowed: a number greater than 0, at most 1000 (stage",
    ),
    "rate of quantization": (["bits=4", "quant.learning_rate=1e30"], "quant.learning_rate: came 1e+30; allowed: "),
    "clip that clips all": ("train.gradient_clip=1e-30", "train.gradient_clip: came 1e-30; allowed: null, or 1e-6"),
    # numbers that no float32 holds, wherever they stand
    "tiny clip": ("train.gradient_clip=1e-300", "train.gradient_clip: came 1e-300; allowed: 0, or 1.2e-38 to 3.4e+38"),
    "huge temperature": ("kd.temperature=1e300", "kd.temperature: came 1e+300; allowed: 0, or 1.2e-38 to 3.4e+38"),
    "hot": ("kd.temperature=1e7", "kd.temperature: expected a number from 0.001 to 1e+06 (1 to 20 is usual), got 1000"),
    "cold": ("kd.temperature=1e-9", "kd.temperature: expected a number from 0.001 to 1e+06"),
    "nan": ("compress.max_drop=nan", "compress.max_drop: came nan; allowed: finite numbers"),
    "inf": ("quant.entropy=inf", "quant.entropy: came inf; allowed: finite numbers"),
    "nan in a list": ("optimizer.betas=[nan,0.9]", "optimizer.betas[0]: came nan; allowed: finite numbers"),
    "nan in a recipe": ("teacher_fit.optimizer.lr=nan", "teacher_fit.optimizer.lr: came nan; allowed: finite numbers"),
    "many digits": ("train.batch_size=99999999999999999999", "train.batch_size: came a number of 68 bits; allowed: up"),
    "weight of a hint": (
        ["kd=fitnets", "kd.feature_weight=1e30"],
        "kd.objective: its gradient is not finite; its terms are cross_entropy: weight=0.1",
    ),
    # sizes, by shapes alone
    "modes": (
        "compress.modes={fc1: [[3,3],[4,4]]}",
        "compress.modes: fc1: expected input modes of at least 1 whose product is at least 64; got (3, 3)",
    ),
    "modes of unequal length": ("compress.modes={fc1: [[8,8],[128]]}", "compress.modes: fc1: expected as many input"),
    "number of ranks": (
        ["compress.modes={fc1: [[4,4,4],[4,8,4]]}", "compress.ranks={fc1: [4]}"],
        "compress.modes: fc1: expected 2 ranks for the 3 cores",
    ),
    "number of cores": ("compress.num_cores=7", "compress.num_cores: came 7; allowed: 2, 3, 4, or null"),
    "budget of parameters": ("compress.budget=0.0001", "compress.budget: came 0.0001 of 25,348 parameters"),
    "budget of a file": ("quant.budget=0.0001", "quant.budget: came 0.0001, at most 10 bytes; allowed: more than 5"),
    "no width": (["strategy=distill_matched", "student=vit_tiny", "student.patch=4"], "has no option for its width"),
    # kinds of values
    "mapping for bool": ("compress.data_aware={}", "compress.data_aware: came {} (dict); allowed: true or false"),
    "mapping for bool in kd": ("kd.standardize={a: 1}", "kd.standardize: came {'a': 1} (dict); allowed: true or false"),
    "mapping for number": ("kd.temperature={a: 1}", "kd.temperature: came {'a': 1} (dict); allowed: number"),
    "list for path": ("teacher.weights=[]", "teacher.weights: came []; allowed: the path of a file, or null"),
    "list for mapping": ("compress.ranks=[1]", "compress.ranks: came [1] (list); allowed: mapping: {a: b}, null"),
    "number for mapping": (["bits=4", "quant.layers=3"], "quant.layers: came 3 (int); allowed: mapping: {a: b}, null"),
    "word in a list": ("student.hidden=[8,b]", "student.hidden[1]: came 'b' (str); allowed: whole number"),
    "word in a mapping": ("compress.ranks={fc1: a}", "compress.ranks.fc1: came 'a' (str); allowed: whole number"),
    "word for an object": ("data.augmentation=2", "data.augmentation: came 2; write a node whose _target_ makes"),
    "number for stages": ("++strategy.stages=3", "strategy.stages: came 3; write the stages by name"),
    "nothing for options": ("strategy.stages={}", "strategy.stages: came {}, which changes nothing; write '"),
    "nothing for a choice": ("optimizer=[]", "optimizer: came []; allowed: adam, adamw, sgd"),
    # keys that nothing reads, and keys that something reads
    "unknown by ++": ("++nosuch=1", "nosuch: unknown option; allowed: data, teacher"),
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
    "removed group": ("~optimizer", "~optimizer: cannot be left out; write optimizer=NAME; allowed: adam, adamw, sgd"),
    "removed inner group": ("~data/augmentation", "~data/augmentation: cannot be left out; write"),
    # Hydra's own
    "search path": ("hydra.searchpath=[http://x]", "hydra.searchpath: came http://x; allowed: a folder, file://FOLDER"),
    "absent search path": ("hydra.searchpath=[nowhere]", "hydra.searchpath: came nowhere, which is no folder"),
    "chdir": ("hydra.job.chdir=true", "hydra.job.chdir: came true; a run stays where it was started"),
    # places
    "long folder": (f"outputs_dir={LONG}", "characters), which cannot be written ("),
    "long path": (f"outputs_dir={'a/' * 3000}b", "File name too long); write outputs_dir=DIR"),
    "long folder of a run": (f"hydra.run.dir={LONG}", "hydra.run.dir: came aaaa"),
    "long name": (f"strategy.name={LONG}", "strategy.name: came 'aaa"),
    # proposals, which are tried
    "umlaut": ("outputs_dir=größe", "is no override; quote a value with special characters twice, once for the shell: "
               "'outputs_dir=\"größe\"'"),
    "mail": ("outputs_dir=me@host#1", "once for the shell: 'outputs_dir=\"me@host#1\"'"),
    "quoted keys": (
        'compress.ranks={layer1.0.conv1: 4, "layer2.*": 8}',
        "keys within braces take no quotes; write 'compress.ranks={layer1.0.conv1: 4, layer2.*: 8}'",
    ),
    "umlaut in a list": ("compress.include=[größe]", "once more for the shell: 'compress.include=[\"größe\"]'"),
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
        "rank: 999,999 jobs (rank: 999,999 values); allowed: 1,000 in one sweep",
    ),
    "ten thousand": (
        "rank=range(1,10001)",
        "rank: 10,000 jobs (rank: 10,000 values); allowed: 1,000 in one sweep",
    ),
    "endless": ("kd.alpha=range(0,1,1e-300)", "kd.alpha: "),
    "no step": ("rank=range(1,5,0)", "rank: came range(1,5,0), which stands for no value; write rank=A,B"),
    "no value": ("rank=range(5,1)", "rank: came range(5,1), which stands for no value"),
    "to infinity": ("rank=range(1,inf)", "rank: came range(1,inf), which stands for no value"),
    "glob of no group": (
        "rank=glob(*)",
        "rank: came glob(*), which stands for no value; glob chooses among the files",
    ),
    "glob of nothing": ("kd=glob(x*)", "kd: came glob(x*), which stands for no value"),
}


@pytest.mark.parametrize(("override", "needle"), SWEEPS.values(), ids=SWEEPS)
def test_sweep_is_counted_before_it_is_made(run_cli, override, needle):
    refused(run_cli("-m", *DATA, override), needle)


def test_counts_of_several_keys_multiply(run_cli):
    text = "rank: 2,000 jobs (rank: 200 values, seed: 10 values); allowed: 1,000 in one sweep"
    refused(run_cli("-m", *DATA, "rank=range(1,201)", "seed=range(0,10)"), text)
    assert MOST_JOBS == 1000


def test_glob_chooses_among_the_files_of_a_group(run_cli):
    outcome = run_cli("-m", *DATA, "rank=0", "kd=glob([d*,n*], exclude=none)")
    refused(outcome, "rank: came 0; allowed: 1 or more")
    outcome = run_cli("-m", *DATA, "strategy=train", "epochs=0", "scheduler=glob(c*)")
    assert outcome.status == 0, outcome.err
    assert sum(path.endswith("record.json") for path in outcome.left) == 2


COMMANDS = {
    "bench without a rank": (
        ["bench", "--layer", "64x64", "--rank", "0"],
        "--rank: came 0; allowed: 1 or more",
    ),
    "bench of nothing": (
        ["bench", "--layer", "0x64"],
        "--layer: came 0x64; write a run's folder, or --layer MxN",
    ),
    "bench of an empty batch": (
        ["bench", "--layer", "8x8", "--batch", "0"],
        "--batch: came 0; write sizes of 1",
    ),
    "bench on no thread": (
        ["bench", "--layer", "8x8", "--threads", "0"],
        "--threads: came 0; allowed: 1 or more",
    ),
    "bench of nine cores": (["bench", "--layer", "8x8", "--cores", "9"], "--cores: came 9; allowed: up to 4"),
    "resume with a change": (
        ["resume", "run", "epochs=90"],
        "resume: came epochs=90; a run resumes as it was begun; write compresskd resume run, or begin another run",
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
    "Tuple": "student: in training mode it returns a tuple; expected logits [B, K], as in evaluation",
    "Dict": "student: in training mode it returns a dict; expected logits [B, K]",
    "Lazy": "the shape of inner.weight, inner.bias is not known before data come (a lazy layer); write its sizes",
    "Double": "student: first.weight is float64; allowed: float32 parameters",
    "Complex": "student: phase is complex64; allowed: float32 parameters",
    "Nan": "student: returns values that are not finite on training samples, before any training",
    "NanInTraining": "student: returns values that are not finite on training samples",
    "Frozen": "student: cannot be trained: the model has no trainable parameter",
    "Detached": "student: cannot be trained: element 0 of tensors does not require grad",
    "InPlace": "student: cannot be trained: one of the variables needed for gradient computation has been modified",
    "Squeezed": "student: returns [4] for 1 sample; expected logits [1, 4]",
    "FixedBatch": "student: fails in training mode on a batch of 6: shape '[32, 64]' is invalid",
    "Raising": "student: fails in training mode on a batch of 32: 'boom'",
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
    batch = "teacher_fit.train.batch_size: came 1; the teacher does not train on a batch of 1 (Expected more than 1 va"
    refused(outcome, "2 faults", batch, "student: in training mode it returns a tuple")
    outcome = run_cli(*SMALL, "teacher=custom", "teacher._target_=trial_models.Tuple")
    refused(outcome, "1 fault", "teacher: in training mode it returns a tuple")


def test_a_batch_of_one_is_refused_where_batches_are_normalized(run_cli, models):
    norm = ("student=custom", "student._target_=trial_models.Norm")
    needle = (
        "train.batch_size: came 1; the student does not train on a batch of 1 (Expected more than 1 value"
    )
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
