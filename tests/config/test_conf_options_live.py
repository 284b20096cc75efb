"""Every key in conf/ is read by something: an argument of its `_target_` that is used, a reference, or named Python."""

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

import compresskd
from compresskd.config.build import build_jobs
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError
from compresskd.config.origin import as_written, references
from compresskd.config.schema import register
from compresskd.config.shipped import conf_dir
from compresskd.targets.nodes import Maker
from compresskd.targets.paths import resolve
from compresskd.training import Recipe

PACKAGE = Path(compresskd.__file__).parent
GROUPS = {
    group: sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
    for group in ("data", "data/augmentation", "kd", "strategy", "compress", "rank_schedule", "quant", "optimizer",
                  "scheduler", "train", "task", "model", "tracker")
}  # fmt: skip
# Keys that Python reads by name: an override of each, and what it must do to the experiment that is built; where that
# cannot be seen on every machine, a value that is refused under the name of its key.
READ_BY_NAME = {
    "outputs_dir": ("outputs_dir=elsewhere", lambda e: "elsewhere" in e.teacher.directory.parts),
    "seed": ("seed=5", lambda e: e.seed == 5),
    "epochs": ("epochs=3", lambda e: {s.epochs for s in e.strategy.stages.values() if hasattr(s, "epochs")} == {3}),
    "total_epochs": ("total_epochs=8", lambda e: e.strategy.stages["finetune"].epochs == 4),
    "device": ("device=cuda:77", None),
    "precision": ("precision=bf16", lambda e: e.recipe.precision == "bf16"),
    "tt.plan": ("tt.plan=measured", lambda e: e.plan == "measured"),
    "processes": ("processes=2", lambda e: e.processes == 2),
    "measure.validation_only": ("measure.validation_only=true", lambda e: not e.scores_test),
    "measure.latency": ("measure.latency=false", lambda e: not e.measure_latency),
    "strategy.name": ("strategy.name=mine", lambda e: e.strategy.name == "mine"),
    "teacher_fit.epochs": ("teacher_fit.epochs=9", lambda e: own_of_teacher(e).recipe.epochs == 9),
    "teacher_fit.seed": ("teacher_fit.seed=9", lambda e: own_of_teacher(e).seed == 9),
    "teacher_fit.train": ("teacher_fit.train.batch_size=7", lambda e: own_of_teacher(e).recipe.batch_size == 7),
    "teacher_fit.train.label_smoothing": (
        "teacher_fit.train.label_smoothing=0.3",
        lambda e: terms_of(own_of_teacher(e))["cross_entropy"].label_smoothing == 0.3,
    ),
    "teacher.weights": ("teacher.weights=/no/such.pt", None),
    "student.weights": ("student.weights=/no/such.pt", None),
}  # fmt: skip
HYDRA_S_OWN = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


@pytest.fixture(autouse=True)
def _registered():
    register()


def composed(*overrides):
    (job,) = compose_jobs(overrides).jobs
    assert job.faults == []
    return job.config


def paths(node, key=""):
    """(dotted key, the node above, name) of everything that a person could set, down to what a `_target_` takes."""
    for name in node:
        path = f"{key}.{name}" if key else str(name)
        value = None if OmegaConf.is_missing(node, name) else node._get_node(name)
        if name not in HYDRA_S_OWN:
            yield path, node, str(name)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation():
            yield from paths(value, path)


def unread(cfg):
    """The keys of a composed configuration that nothing reads."""
    named = references(as_written(cfg))
    found = []
    for path, above, name in paths(cfg):
        below = [p for p in (path, *READ_BY_NAME, *named) if p.startswith(f"{path}.")]
        group = path.rpartition(".")[0]
        if path in named or path in READ_BY_NAME or any(path.startswith(f"{p}.") for p in named) or below:
            continue
        if "_target_" in above.keys():  # noqa: SIM118 - a missing value is not "in" its mapping
            target = above._get_node("_target_")._value()
            if target != "???" and not is_used(resolve(target), name):
                found.append(f"{path}: {target} does not use it")
        elif group in ("train", "teacher_fit.train"):
            if name not in {field.name for field in dataclasses.fields(Recipe)} or not is_used(Recipe, name):
                found.append(path)
        elif path.startswith(
            ("teacher.config.", "student.config.")
        ):  # options of an architecture of transformers
            kind = OmegaConf.select(cfg, f"{path.partition('.')[0]}.config.model_type")
            assert name in AutoConfig.for_model(kind).to_dict()
        elif not holds_nodes(cfg, path) and OmegaConf.select(cfg, path) != {}:  # a place for options to come
            found.append(path)
    return found


def holds_nodes(cfg, path):
    """Whether there is a `_target_` below: then what is between is a name that a person gave (of a stage, a term)."""
    node = OmegaConf.select(cfg, path)
    return isinstance(node, DictConfig) and (
        "_target_" in node or any(holds_nodes(node, str(k)) for k in node)
    )


def is_used(function, name):
    """Whether an argument of a class or function is more than accepted: its name occurs in the code that takes it."""
    if dataclasses.is_dataclass(function):
        return name in attributes_read()
    if not in_package(function):  # torch's own
        return name in inspect.signature(function).parameters
    code = function.__init__ if inspect.isclass(function) else function
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    loaded = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    keywords = {
        a.arg for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and (a := node.args.kwarg)
    }
    if name in inspect.signature(code).parameters:
        return name in loaded
    return bool(keywords & loaded) and not list(check_keyword(function, name))


def check_keyword(function, name):
    node = {"_target_": f"{function.__module__}.{function.__qualname__}", "_partial_": True, name: None}
    maker = Maker(lambda path, _: resolve(path))
    maker.make(node, "", call=False)
    return [error for error in maker.errors if "unknown option" in error.text]


def in_package(function):
    return getattr(function, "__module__", "").partition(".")[0] == "compresskd"


_ATTRIBUTES: set[str] = set()


def attributes_read():
    """Every `.name` that the package reads."""
    if not _ATTRIBUTES:
        for path in PACKAGE.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    _ATTRIBUTES.add(node.attr)
    return _ATTRIBUTES


def choices():
    yield ()
    yield ("teacher=custom",)  # both roles offer the same files
    for group, names in GROUPS.items():
        for name in names:
            yield (f"{'student' if group == 'model' else group}={name}",)


@pytest.mark.slow
@pytest.mark.parametrize("choice", list(choices()), ids="".join)
def test_every_key_is_read(choice):
    # of a task without labels, which are none to smooth: it is refused there
    labelless = choice in (("kd=vectors",), ("task=embedding",))
    assert unread(composed(*choice)) == (["train", "train.label_smoothing"] if labelless else [])


def test_every_group_is_looked_at():
    folders = {str(p.parent.relative_to(conf_dir())) for p in conf_dir().rglob("*.yaml")}
    assert folders == {".", "experiment", *GROUPS}


def own_of_teacher(experiment):
    """The experiment by which the teacher is trained."""
    return experiment.teacher.train.__self__


def terms_of(experiment):
    (stage,) = experiment.strategy.stages.values()
    return stage.objective.terms


@pytest.mark.parametrize("key", READ_BY_NAME)
def test_the_python_that_reads_a_key_by_name_does(key):
    override, holds = READ_BY_NAME[key]
    jobs = compose_jobs(["data=synthetic", "data.num_train=64", "data.num_test=16", "rank=4", override]).jobs
    if holds is None:
        with pytest.raises(ConfigError) as raised:
            build_jobs(jobs)
        assert [fault.key for fault in raised.value.faults] == [key]
    else:
        (experiment,) = build_jobs(jobs)
        assert holds(experiment)


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_experiment_sets_only_keys_that_there_are(path):
    content = yaml.safe_load(path.read_text())
    base = composed()
    keys = [k for k in OmegaConf.create(content) if k not in ("defaults", "hydra")]
    swept = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    for key in (*keys, *swept):
        assert OmegaConf.select(base, key, default="absent") != "absent", key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("++kd.dead=1",), ["kd.dead"]),
        (("++train.dead=1",), ["train.dead"]),
        (("++dead=1",), ["dead"]),
        (("++strategy.dead=1",), ["strategy.dead"]),
        (("++optimizer.dead=1",), ["optimizer.dead: torch.optim.AdamW does not use it"]),
        (
            ("++strategy.stages.distill.dead=1",),
            ["strategy.stages.distill.dead: compresskd.stages.Fit does not use it"],
        ),
        (("kd=none", "++kd.alpha=1"), ["kd.alpha"]),
    ],
)  # fmt: skip
def test_a_dead_key_would_be_found(overrides, expected):
    base = composed(*[o for o in overrides if not o.startswith("++")])
    for line in overrides:
        if line.startswith("++"):
            OmegaConf.update(base, line[2:].partition("=")[0], 1, force_add=True)
    assert unread(base) == expected
