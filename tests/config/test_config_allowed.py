"""Each `_target_` takes its own kind of class or function, on the user's own command line too."""

import pytest

from compresskd.config.allowed import kind_of, outside_targets, resolve_allowed
from compresskd.targets.paths import Untrusted

ALLOWED = [
    ("data", "compresskd.data.digits.digits"),
    ("data", "own_things.data"),
    ("data.augmentation", "compresskd.data.augmentation.Compose"),
    ("data.augmentation.operations.flip", "compresskd.data.augmentation.HorizontalFlip"),
    ("data.augmentation.operations.mine", "own_things.Any"),
    ("student", "compresskd.models.mlp.MLP"),
    ("student", "torch.nn.Linear"),
    ("student", "own_things.Net"),
    ("student", "own_things.net"),
    ("student", "own_things.small"),
    ("student", "own_things.Net.wide"),
    ("student", "own_things.decorated"),
    ("student._args_[0]", "torch.nn.ReLU"),
    ("student.act", "torch.nn.functional.relu"),
    ("student.init", "torch.nn.init.xavier_uniform_"),
    ("student.part", "own_things.Any"),
    ("optimizer", "torch.optim.SGD"),
    ("teacher_fit.optimizer", "own_things.Optimizer"),
    ("scheduler", "compresskd.training.schedules.cosine"),
    ("scheduler", "torch.optim.lr_scheduler.OneCycleLR"),
    ("scheduler", "own_things.anything"),
    ("kd.objective", "compresskd.kd.objective.Objective"),
    ("kd.objective.terms.x", "compresskd.kd.logits.SoftTargets"),
    ("strategy.stages.a.objective.terms.x", "own_things.Any"),
    ("compress", "compresskd.stages.Compression"),
    ("strategy.stages.a.compression", "compresskd.stages.Quantization"),
    ("strategy.stages.a", "compresskd.stages.Fit"),
    ("strategy.stages.a", "compresskd.stages.MultiStage"),
    ("strategy.stages.a", "compresskd.stages.Quantize"),
    ("rank_schedule", "compresskd.compression.rank_schedule.until_drop"),
    ("strategy.stages.a.stages", "own_things.anything"),
]
DANGEROUS = [
    "os.system", "subprocess.run", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.open",
    "functools.partial", "shutil.rmtree", "importlib.import_module", "runpy.run_path", "pickle.loads", "torch.load",
    "torch.hub.load", "torch.jit.load", "torch.fx.GraphModule", "numpy.load", "hydra.utils.instantiate",
    "hydra.utils.call", "omegaconf.OmegaConf.load", "compresskd.models.build.build",
    "compresskd.targets.nodes.Maker", "compresskd.targets.paths.resolve",
    "compresskd.engine.environment.subprocess.run", "compresskd.run.files.shutil.rmtree",
    "compresskd.run.write_text", "compresskd.cli.main", "compresskd.artifact.load", "own_things.os.system",
    "own_things.shell", "own_things.instance",
]  # fmt: skip
KEYS = [
    "data", "data.augmentation", "data.part", "student", "teacher", "student.part", "optimizer", "scheduler", "train.x",
    "kd.objective", "kd.objective.terms.x", "kd.x", "compress", "quant", "rank_schedule", "strategy.stages.a",
    "strategy.stages.a.compression", "strategy.stages.a.objective", "strategy.stages.a.stages", "strategy.stages.a.x",
]  # fmt: skip
# Each of these is right at some key, and wrong at this one.
MISPLACED = [
    ("data", "compresskd.models.mlp.MLP"),
    ("data", "compresskd.data.assemble.assemble.x"),
    ("data", "own_things.Net"),
    ("data", "own_things.number"),
    ("student", "compresskd.data.digits.digits"),
    ("student", "compresskd.kd.logits.SoftTargets"),
    ("student", "own_things.Any"),
    ("student", "own_things.number"),
    ("student", "torch.nn.functional.relu"),
    ("optimizer", "torch.nn.Linear"),
    ("optimizer", "torch.optim.lr_scheduler.StepLR"),
    ("scheduler", "torch.optim.SGD"),
    ("kd.objective.terms.x", "compresskd.kd.capture.ActivationCapture"),
    ("kd.objective.terms.x", "compresskd.kd.matching.FeatureMatch"),
    ("strategy.stages.a", "compresskd.stages.Compression"),
    ("strategy.stages.a", "compresskd.compression.rank_schedule.explicit"),
    ("compress", "compresskd.stages.Fit"),
    ("data.augmentation", "compresskd.data.digits.digits"),
    ("rank_schedule", "compresskd.compression.rank_schedule._check"),
]


@pytest.fixture
def _own_things(tmp_path, monkeypatch):
    (tmp_path / "own_things.py").write_text(
        "import functools, os, torch\n"
        "from torch import nn\n"
        "from compresskd.data import Data\n"
        "class Net(nn.Linear):\n"
        "    @classmethod\n"
        "    def wide(cls): return cls(9, 9)\n"
        "class Optimizer(torch.optim.SGD): pass\n"
        "class Any:\n"
        "    def __call__(self): pass\n"
        "def data() -> Data: raise AssertionError\n"
        "def net() -> nn.Module: raise AssertionError\n"
        "def number() -> int: raise AssertionError\n"
        "def anything(**options): raise AssertionError\n"
        "small = functools.partial(Net, 2, 2)\n"
        "shell = functools.partial(os.system, 'true')\n"
        "instance = Any()\n"
        "decorated = functools.lru_cache(net)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    __import__("sys").modules.pop("own_things", None)


@pytest.mark.usefixtures("_own_things")
@pytest.mark.parametrize(("key", "path"), ALLOWED)
def test_of_its_kind(key, path):
    assert callable(resolve_allowed(path, key, trust=None))


@pytest.mark.usefixtures("_own_things")
@pytest.mark.parametrize("key", KEYS)
def test_never_any_callable(key):
    for path in DANGEROUS:
        with pytest.raises(ValueError, match=f"{path}.*: expected "):
            resolve_allowed(path, key, trust=None)


@pytest.mark.usefixtures("_own_things")
@pytest.mark.parametrize(("key", "path"), MISPLACED)
def test_not_of_its_kind(key, path):
    with pytest.raises(ValueError, match=f"{path}: |has no 'x'"):
        resolve_allowed(path, key, trust=None)


@pytest.mark.usefixtures("_own_things")
def test_without_trust_nothing_outside_is_imported():
    with pytest.raises(Untrusted, match="write --trust own_things"):
        resolve_allowed("own_things.Net", "student", trust=())
    assert "own_things" not in __import__("sys").modules
    assert resolve_allowed("own_things.Net", "student", trust=("own_things",)).__name__ == "Net"


def test_outside_targets_are_found_wherever_they_stand():
    node = {
        "a": [
            {
                "_target_": "x.Y",
                "b": {"_target_": "compresskd.models.mlp.MLP", "_args_": [{"_target_": "z.W"}]},
            }
        ]
    }
    assert list(outside_targets(node)) == [("a[0]._target_", "x.Y"), ("a[0].b._args_[0]._target_", "z.W")]
    assert kind_of("anything.else").words.endswith("a class or function of your own")
