"""From a composed configuration to an `Experiment`, or to the list of everything that is wrong with it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.faults import ConfigError, Fault
from compresskd.config.schema import MODEL_ROLES, conf_dir
from compresskd.config.signature import check_calls
from compresskd.data.base import Data
from compresskd.experiment import Experiment
from compresskd.models.build import build as build_model
from compresskd.models.weights import load_weights
from compresskd.strategy import Expandable, Stage, Strategy
from compresskd.teacher import Teacher
from compresskd.training import Recipe
from compresskd.training.precision import check_precision

Plain = dict[str, Any]
T = TypeVar("T")
# Keys of a `train` node that the loss terms read, not the loop.
_READ_BY_LOSSES = ("label_smoothing",)
_PATHS = ("data.path", "teacher.weights", "student.weights", "outputs_dir")


def resolve(cfg: DictConfig) -> Plain:
    """The configuration as nested plain values, paths made absolute so that it means the same anywhere.

    Raises:
        ConfigError: for an interpolation that leads nowhere.
    """
    try:
        for key in _PATHS:
            value = OmegaConf.select(cfg, key)
            if isinstance(value, str):
                OmegaConf.update(cfg, key, str(Path(value).expanduser().absolute()))
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([Fault(error.full_key or "", str(error).partition("\n")[0])]) from error
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def build(config: Plain, overrides: Sequence[str] = (), *, data: Data | None = None) -> Experiment:
    """Build the experiment that a resolved configuration describes.

    Args:
        config: what `resolve` returned, or the config.yaml of a run.
        overrides: what was typed, for the record.
        data: already loaded; None loads what `config['data']` says.

    Raises:
        ConfigError: with every fault; nothing has been trained or written.
    """
    builder = _Builder(config)
    builder.check(_scalar_faults(config))
    for group in ("data", *MODEL_ROLES, "optimizer", "scheduler", "strategy", "teacher_fit"):
        skip = ("weights",) if group in MODEL_ROLES else ()
        builder.check(check_calls(config[group], group, skip=skip))
    builder.stop_at_faults()
    recipe = builder.recipe(config)
    strategy = builder.strategy(config["strategy"])
    device = builder.attempt("device", lambda: _device(config["device"], config["precision"]))
    data = data or builder.data()
    builder.stop_at_faults()
    assert recipe is not None and strategy is not None and device is not None and data is not None  # noqa: PT018
    config = _with_shapes(config, data)
    builder.models(config, data, needs_teacher=strategy.needs_teacher)
    builder.stop_at_faults()
    teacher = _teacher(config, data, overrides) if strategy.needs_teacher else None
    student = functools.partial(_model, config["student"], config["seed"])
    return Experiment(
        data, student, strategy, recipe, config["seed"], device, teacher, config, tuple(overrides)
    )


class _Builder:
    """Builds part after part and collects what goes wrong, so that the user hears everything at once."""

    def __init__(self, config: Plain):
        self._config = config
        self._faults: list[Fault] = []

    def check(self, faults: Iterator[Fault]) -> None:
        self._faults += faults

    def stop_at_faults(self) -> None:
        if self._faults:
            raise ConfigError(self._faults)

    def attempt(self, key: str, make: Callable[[], T]) -> T | None:
        """Make a part; a failure becomes a fault at `key` (or at the keys that its message names)."""
        try:
            return make()
        except HydraException as error:  # how Hydra wraps what a constructor raised
            cause = error.__cause__ or error
            self._faults += [Fault(*_split_key(line, key)) for line in str(cause).splitlines()]
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            self._faults += [
                Fault(*_split_key(line, key)) for line in str(error).splitlines() if line.strip()
            ]
        return None

    def recipe(self, config: Plain) -> Recipe | None:
        return self.attempt("train", lambda: _recipe(config))

    def strategy(self, node: Plain) -> Strategy | None:
        stages: dict[str, Any] = {}
        for name, stage in (node.get("stages") or {}).items():
            key = f"strategy.stages.{name}"
            made = self.attempt(key, functools.partial(instantiate, stage, _convert_="all"))
            if made is not None and not isinstance(made, Stage | Expandable):
                self._faults.append(Fault(f"{key}._target_", "is no stage: it has no needs_teacher"))
            elif made is not None:
                stages[name] = made
        if self._faults:
            return None
        return self.attempt("strategy", lambda: Strategy(node["name"], stages))

    def data(self) -> Data | None:
        if self._faults:  # loading may take long: first let the user mend what is known
            return None
        return self.attempt("data", lambda: instantiate(self._config["data"], _convert_="all"))

    def models(self, config: Plain, data: Data, *, needs_teacher: bool) -> None:
        """Build each model once, load its weights, and see that it fits the data."""
        for role in MODEL_ROLES:
            if role == "teacher" and not needs_teacher:
                continue
            model = self.attempt(role, functools.partial(_model, config[role], 0))
            if model is not None:
                self._faults += _misfits(role, model, data)


def _scalar_faults(config: Plain) -> Iterator[Fault]:
    for key, least in (("rank", 1), ("epochs", 0), ("seed", 0)):
        if config[key] < least:
            yield Fault(key, f"came {config[key]}; allowed: {least} or more")
    if config["bits"] is not None:
        yield Fault("bits", f"came {config['bits']}; quantization is not there yet: leave bits=null")
    for key in ("epochs", "seed"):
        value = config["teacher_fit"].get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            yield Fault(f"teacher_fit.{key}", f"came {value!r}; allowed: 0 or more")


def _split_key(line: str, key: str) -> tuple[str, str]:
    """'rank: came 0' speaks of its own key; other messages belong to `key`."""
    head, colon, rest = line.partition(": ")
    is_key = colon and " " not in head.strip() and head.strip().replace("_", "").replace(".", "").isalnum()
    if not is_key:
        return key, line.strip()
    head = head.strip()
    # a stage names its own option: say which stage's
    return (f"{key}.{head}" if key.startswith("strategy.stages.") and "." not in head else head), rest


def _recipe(config: Plain) -> Recipe:
    node = {k: v for k, v in config["train"].items() if k not in _READ_BY_LOSSES}
    known = {field.name for field in dataclasses.fields(Recipe)}
    for name in node:
        if name not in known:
            raise ValueError(f"train.{name}: unknown option; allowed: {', '.join(config['train'])}")
    return Recipe(
        epochs=config["epochs"],
        optimizer=instantiate(config["optimizer"], _convert_="all"),
        scheduler=instantiate(config["scheduler"], _convert_="all"),
        precision=config["precision"],
        **node,
    )


def _device(name: str, precision: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: came {name}; allowed: auto, cpu, cuda, cuda:N, mps") from None
    available = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        here = ", ".join(
            ["auto", *(kind for kind, there in available.items() if there and kind != device.type)]
        )
        raise ValueError(f"device: came {name}, which this machine does not have; here: {here}")
    check_precision(precision, device)
    return device


def _with_shapes(config: Plain, data: Data) -> Plain:
    """Fill in what only loading the data could tell."""
    known = {"num_classes": data.num_classes, "input_shape": list(data.input_shape)}
    filled = dict(config)
    for role in ("data", *MODEL_ROLES):
        node = config[role]
        filled[role] = {**node, **{k: v for k, v in known.items() if k in node and node[k] is None}}
    return filled


def _model(node: Plain, seed: int) -> torch.nn.Module:
    options = {k: v for k, v in node.items() if k not in ("_target_", "weights")}
    model = build_model(node["_target_"], options, seed=seed)
    if node.get("weights"):
        load_weights(model, Path(node["weights"]))
    return model


def _misfits(role: str, model: torch.nn.Module, data: Data) -> Iterator[Fault]:
    example = next(iter(data.validation.batches(2))).inputs.cpu()
    try:
        with torch.inference_mode():
            logits = model.eval()(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        text = str(error).partition("\n")[0]
        yield Fault(role, f"does not take inputs of shape {list(data.input_shape)} as data has them: {text}")
        return
    num_classes = logits.shape[-1] if isinstance(logits, torch.Tensor) and logits.ndim == 2 else None
    if num_classes != data.num_classes:
        came = f"{num_classes} classes" if num_classes else "no [B, classes] logits"
        yield Fault(
            f"{role}.num_classes", f"came {came}; allowed: the {data.num_classes} classes of the data"
        )


def _teacher(config: Plain, data: Data, overrides: Sequence[str]) -> Teacher:
    node = config["teacher"]
    make = functools.partial(_model, node, config["teacher_fit"]["seed"])
    if node.get("weights"):
        return Teacher(make, weights=Path(node["weights"]))
    own = _teacher_config(config)
    key = _key(own, data)
    directory = Path(config["outputs_dir"]) / "teachers" / f"{_short_name(node)}_{key}"
    return Teacher(
        make,
        experiment=build(own, overrides, data=data),
        directory=directory,
        key=key,
        trust=(node["_target_"].partition(".")[0],),
    )


def _teacher_config(config: Plain) -> Plain:
    """The configuration of the ordinary run that trains the teacher: it is the student there, trained alone."""
    fit = config["teacher_fit"]
    own = {k: v for k, v in config.items() if k != "teacher_fit"}
    own |= {"student": config["teacher"], "strategy": OmegaConf.load(conf_dir() / "strategy" / "train.yaml")}
    own |= {k: fit[k] for k in ("epochs", "seed", "optimizer", "scheduler", "train")}
    resolved = resolve(OmegaConf.create(own))
    return {**resolved, "teacher_fit": fit}


def _key(config: Plain, data: Data) -> str:
    """Hash of what determines a trained teacher."""
    parts = ("student", "strategy", "optimizer", "scheduler", "train", "epochs", "seed", "precision")
    # how often a checkpoint is written changes no weight
    train = {k: v for k, v in config["train"].items() if k != "checkpoint_seconds"}
    determined: Mapping[str, Any] = {k: config[k] for k in parts} | {"train": train, "data": data.fingerprint}
    return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()[:12]


def _short_name(node: Plain) -> str:
    return node["_target_"].rpartition(".")[2].lower()


def differences(one: Any, other: Any, key: str = "") -> list[str]:
    """'key: value, other value' for each leaf in which two plain configurations differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = []
        for name in sorted({*one, *other}):
            found += differences(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
        return found
    return [] if one == other else [f"{key}: {one!r}, now {other!r}"]
