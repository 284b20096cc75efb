"""The parts of an experiment, made one after the other; what goes wrong is collected, not raised."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from compresskd.config.faults import ConfigError, Fault, nearest
from compresskd.config.model_faults import misfits
from compresskd.config.schema import MODEL_ROLES
from compresskd.config.signature import check_calls
from compresskd.config.teacher_faults import is_of_training, of_teacher
from compresskd.config.values import device_of, value_faults
from compresskd.data.base import Data
from compresskd.engine.strategy import Checked, Expandable, Stage, State, Strategy
from compresskd.engine.teacher import Teacher
from compresskd.models.build import build as build_model
from compresskd.models.build import construct
from compresskd.models.weights import load_weights
from compresskd.stages import Quantization
from compresskd.stages.dry_run import try_training
from compresskd.stages.train_student import Training
from compresskd.training import Recipe
from compresskd.training.dry_run import factory_faults

Plain = Mapping[str, Any]
T = TypeVar("T")
# Keys of a `train` node that the loss terms read, not the loop.
_READ_BY_LOSSES = ("label_smoothing",)
# What a trial of training depends on, beside the models' structure and the stage.
_OF_A_TRAINING = (
    "data",
    "teacher",
    "student",
    "train",
    "optimizer",
    "scheduler",
    "quant",
    "precision",
    "device",
)
_FACTORIES = {
    "optimizer": functools.partial(torch.optim.SGD, lr=1.0),
    "scheduler": functools.partial(lambda _: _),
}


class Parts:
    """Makes the parts of one experiment, so that the user hears of all faults at once.

    Args:
        config: resolved.
        origin_of: (key, literal=) -> the key that a user would change, for a key where a fault is found.
        known: faults found before.
        tried: trainings that passed a trial, of this job and others; those that pass here are added.
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.
    """

    def __init__(
        self,
        config: Plain,
        origin_of: Callable[..., str],
        known: Sequence[Fault] = (),
        tried: set[str] | None = None,
        trust: Sequence[str] | None = None,
    ):
        self._config, self._origin_of, self._trust = config, origin_of, trust
        self._known, self._tried = list(known), set() if tried is None else tried
        self._faults: list[Fault] = []
        self._failed: set[str] = set()  # keys of parts whose faults may lie elsewhere
        self._cause: BaseException | None = None

    def stop_at_faults(self) -> None:
        """Raise ConfigError where there are faults."""
        placed = [Fault(self._origin_of(f.key, literal=f.literal), f.text) for f in self._faults]
        once = {
            (fault.key, fault.text.partition(";")[0]): fault for fault in reversed([*self._known, *placed])
        }
        if once:
            raise ConfigError(list(reversed(once.values()))) from self._cause

    def check_values_and_calls(self) -> None:
        """Judge the top level's values, and every `_target_` by the signature of what it names."""
        self._faults += value_faults(self._config)
        for group in self._config:
            self.check_calls(group)
        objective = self._config["kd"].get("objective")
        if objective and not self._faulty("kd"):
            self._attempt("kd.objective", lambda: construct(objective))

    def check_calls(self, group: str) -> None:
        """Judge every `_target_` of one group, as has to be done before anything of it is made."""
        node = self._config[group]
        if group in MODEL_ROLES:  # a shape that only the data can tell is not there yet, which is no fault
            node, skip = with_shape(node, 2, [1]), ("weights",)
        else:
            skip = ()
        self._faults += check_calls(node, group, skip=skip, trust=self._trust)

    def recipe(self, node: Plain, prefix: str = "") -> Recipe | None:
        """How to train, from a node with the keys epochs, optimizer, scheduler and train, which is at `prefix`."""
        fields = {field.name: field for field in dataclasses.fields(Recipe)}
        options = {k: v for k, v in node["train"].items() if k in fields}
        for name in node["train"]:
            if name not in (*fields, *_READ_BY_LOSSES):
                key = f"{prefix}train.{name}"
                self._faults.append(
                    Fault(key, f"unknown option{nearest(name, [*options, *_READ_BY_LOSSES])}")
                )

        for name, field in fields.items():
            if field.default is dataclasses.MISSING and name not in (*node, *node["train"]):
                self._faults.append(
                    Fault(f"{prefix}train.{name}", f"is missing; write ++{prefix}train.{name}=VALUE")
                )

        def make() -> Recipe:
            made = {name: self._factory(f"{prefix}{name}", node[name], name) for name in _FACTORIES}
            recipe = Recipe(epochs=node["epochs"], precision=self._config["precision"], **made, **options)
            faults = list(factory_faults(recipe))
            if faults:
                raise ValueError("\n".join(faults))
            return recipe

        return self._attempt(f"{prefix}train", make, node, prefix)

    def _factory(self, key: str, node: Plain, name: str) -> Any:
        # where the factory itself has faults, a stand-in, so that the recipe's other values are judged
        return _FACTORIES[name] if self._faulty(key) else construct(node)

    def strategy(self) -> Strategy | None:
        """The stages in order."""
        node = self._config["strategy"]
        if not isinstance(node.get("stages") or {}, Mapping):
            return None
        stages: dict[str, Any] = {}
        for name, stage in (node.get("stages") or {}).items():
            key = f"strategy.stages.{name}"
            made = self._attempt(key, functools.partial(construct, stage), stage)
            if made is not None and not isinstance(made, Stage | Expandable):
                self._faults.append(Fault(f"{key}._target_", "is no stage: it has no needs_teacher"))
            stages[name] = made
        if self._faulty("strategy"):
            return None
        self._faults += _quantization_faults(self._config, stages.values())
        return self._attempt("strategy", lambda: _strategy(node["name"], stages))

    def device(self) -> torch.device | None:
        """The device, which this machine must have."""
        return self._attempt("device", lambda: device_of(self._config["device"], self._config["precision"]))

    def data(self) -> Data | None:
        """The three splits. Where faults are known and loading may take long, only the path is looked at."""
        node = self._config["data"]
        path = node.get("path")
        if isinstance(path, str) and not Path(path).exists():
            self._faults.append(Fault("data.path", f"came {path}, which is not there; write data.path=DIR"))
        if (self._known or self._faults) and (path or node.get("id")):
            return None
        data = self._attempt("data", lambda: construct(node), node)
        if data is not None and not isinstance(data, Data):
            text = f"made a {type(data).__name__}; expected a function that returns compresskd.data.base.Data"
            self._faults.append(Fault("data._target_", text))
            return None
        return data

    def models(
        self, data: Data | None, strategy: Strategy | None, recipe: Recipe | None, device: torch.device | None
    ) -> None:
        """Build each model once, load its weights, see that it fits the data, that each stage can use and train it."""
        node = self._config["data"]
        shape = data.input_shape if data else node.get("input_shape")
        num_classes = data.num_classes if data else node.get("num_classes")
        if self._faulty("data") or not shape or not num_classes:
            return
        example = torch.zeros(2, *shape)
        made: dict[str, nn.Module | None] = {}
        for role in MODEL_ROLES:
            if role == "student" or strategy is None or strategy.needs_teacher:
                options = with_shape(self._config[role], num_classes, shape)
                made[role] = self._model(role, options, example, num_classes)
        student = made["student"]
        if strategy is not None and student is not None and None not in made.values():
            trained_on = (data, recipe, device) if data and recipe and device else None
            self._check_stages(strategy, State(student, made.get("teacher")), example, trained_on)

    def teacher(self, make: Callable[[], Teacher]) -> Teacher | None:
        """How the run comes by its teacher; faults of the teacher's own training have the keys that they have here."""
        if any(map(self._faulty, ("teacher", "teacher_fit", "data"))):
            return None
        try:
            return make()
        except ConfigError as error:
            self._faults += [of_teacher(fault) for fault in error.faults if is_of_training(fault)]
            self._cause = self._cause or error.__cause__
        return None

    def _model(self, role: str, node: Plain, example: torch.Tensor, num_classes: int) -> nn.Module | None:
        bare = {k: v for k, v in node.items() if k != "weights"}
        model = self._attempt(role, lambda: model_of(bare, 0), node)
        if model is None:
            return None
        found = list(misfits(role, node, model, example, num_classes))
        self._faults += found
        weights = node.get("weights")
        if weights:
            self._attempt(f"{role}.weights", lambda: load_weights(model, weights))
        return None if found else model

    def _check_stages(
        self,
        strategy: Strategy,
        state: State,
        example: torch.Tensor,
        trained_on: tuple[Data, Recipe, torch.device] | None,
    ) -> None:
        for name, stage in strategy.stages.items():
            key = f"strategy.stages.{name}"
            if isinstance(stage, Checked):
                checked = self._attempt(key, functools.partial(stage.check, state, example))
                state = checked or state
            training = getattr(stage, "training", None)
            if isinstance(training, Training) and trained_on is not None:
                self._try_training(name, training, state, *trained_on)

    def _try_training(
        self, stage: str, training: Training, state: State, data: Data, recipe: Recipe, device: torch.device
    ) -> None:
        """Try one training, unless the like of it has passed: of another stage, or in another job of the sweep."""
        alike = [self._config.get(name) for name in _OF_A_TRAINING]
        key = repr((training, state.student, state.teacher, alike))
        if key not in self._tried:
            tried = functools.partial(try_training, stage, training, state, data, recipe, device)
            if self._attempt(f"strategy.stages.{stage}", lambda: tried() or True):
                self._tried.add(key)

    def _faulty(self, key: str) -> bool:
        """Whether something at or below `key` is wrong."""
        below = (f"{key}.", f"{key}[")
        return any(k == key or k.startswith(below) for k in (*self._failed, *(f.key for f in self._faults)))

    def _attempt(
        self, key: str, make: Callable[[], T], node: Plain | None = None, prefix: str = ""
    ) -> T | None:
        """Make a part, unless it has faults already; a failure becomes a fault where its message says, or at `key`."""
        if self._faulty(key):
            return None
        try:
            return make()
        except Exception as error:  # a part may be the user's own code, which raises what it likes
            said = str(error) if isinstance(error, ValueError | TypeError | OSError | RuntimeError) else ""
            text = said or f"{type(error).__name__}: {error}"
            self._faults += [self._placed(line, key, node or {}, prefix) for line in _statements(text)]
            self._failed.add(key)
            self._cause = self._cause or error
        return None

    def _placed(self, line: str, key: str, node: Plain, prefix: str) -> Fault:
        """'rank: came 0' speaks of its own key; other messages belong to `key`."""
        speaks = re.match(r"([\w.]+)((?:\[|, )[\w., \[\]]*)?( \([^()]*\))?: (.*)", line)
        if speaks:
            named, rest, aside, text = speaks.groups()
            top, text, rest = named.partition(".")[0], f"{text}{aside or ''}", rest or ""
            if prefix and top in node:
                return Fault(f"{prefix}{named}{rest}", text)
            if top in node and key != "train":
                return Fault(f"{key}.{named}{rest}", text)
            if top in self._config:
                return Fault(f"{named}{rest}", text)
        architecture = re.match(r"\w+: (\w+)([\[\]\d]*) must be ", line)
        if architecture and architecture[1] in node:
            return Fault(f"{key}.{architecture[1]}{architecture[2]}", line)
        return Fault(key, line)


def _quantization_faults(config: Plain, stages: Iterable[Any]) -> Iterator[Fault]:
    """`bits` where no stage takes them."""
    if config["bits"] is not None and not any(
        isinstance(getattr(stage, "quantization", None), Quantization) for stage in stages
    ):
        name = config["strategy"]["name"]
        text = f"came {config['bits']}, but strategy {name} has no stage that quantizes; write bits=null, or end it in"
        yield Fault("bits", f"{text} a stage compresskd.stages.Quantize, as conf/strategy/distill.yaml does")


def _strategy(name: str, stages: Mapping[str, Any]) -> Strategy:
    strategy = Strategy(name, stages)
    if not strategy.stages:
        raise ValueError("bits: came null, and the strategy does nothing but quantize; write bits=8")
    return strategy


def as_it_is(key: str, *, literal: bool = False) -> str:
    """The origin of keys where nothing is known of interpolations."""
    return key


def _statements(text: str) -> list[str]:
    """Lines of a message; one that does not begin with a key goes on with the line before."""
    found: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if found and not re.match(r"[\w.\[\]]+: ", line):
            found[-1] += f" {line}"
        else:
            found.append(line)
    return found or [text]


def with_shape(node: Plain, num_classes: int, input_shape: Sequence[int]) -> dict[str, Any]:
    """A node of a model or of data with what only the loaded data could tell."""
    known = {"num_classes": num_classes, "input_shape": list(input_shape)}
    return {**node, **{k: v for k, v in known.items() if k in node and node[k] is None}}


def model_of(node: Plain, seed: int) -> nn.Module:
    """The model that a node describes, with its weights where it names some."""
    options = {k: v for k, v in node.items() if k not in ("_target_", "weights")}
    model = build_model(node["_target_"], options, seed=seed)
    if node.get("weights"):
        load_weights(model, Path(node["weights"]))
    return model
