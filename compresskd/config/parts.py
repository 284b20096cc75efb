"""The parts of an experiment, made one after the other; what goes wrong is collected, not raised."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compresskd.config import schema
from compresskd.config.builder import FAILED, OPEN, Builder
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import leaves
from compresskd.config.schema import GROUPS, MODEL_ROLES, Config, TeacherFit
from compresskd.data.base import Data, TensorSplit
from compresskd.data.text.split import TextSplit
from compresskd.engine.strategy import Checked, Expandable, Stage, State, Strategy
from compresskd.engine.teacher import Teacher
from compresskd.kd.objective import Objective
from compresskd.models.build import build as build_model
from compresskd.models.from_teacher import FROM_TEACHER, FromTeacher
from compresskd.models.huggingface import weights_folder
from compresskd.models.vocabulary import check_same_vocabulary, check_tokenizer, check_vocabulary
from compresskd.models.weights import load_weights
from compresskd.options import faults, joined
from compresskd.stages import Quantization
from compresskd.stages.dry_run import check_answers, try_training
from compresskd.stages.train_student import Training
from compresskd.tasks import Batch, CausalLM, Classification, Inputs, MaskedLM, Task, TokenClassification
from compresskd.training import Recipe
from compresskd.training.dry_run import factory_faults
from compresskd.training.precision import device_of

Plain = Mapping[str, Any]
_FLOATS = torch.finfo(torch.float32)
# What a trial of training depends on, beside the models' structure and the stage.
_OF_A_TRAINING = (
    "data", "teacher", "student", "train", "optimizer", "scheduler", "quant", "precision", "device",
)  # fmt: skip
# Stands for what the data will tell, where only the kinds of values are judged.
_ANYTHING = {"num_classes": 2, "input_shape": [1], "task": "classification", "class_names": []}
_OF_ITS_RECIPE = ("optimizer", "scheduler", "train", "epochs", "seed")  # of a teacher's own run


class Parts(Builder):
    """Makes the parts of one experiment.

    Args:
        config: resolved.
        known: faults found before.
        tried: trainings that passed a trial, of this job and others; those that pass here are added.
        trust: see `Builder`.
    """

    def __init__(
        self,
        config: Plain,
        known: Sequence[Fault] = (),
        tried: set[str] | None = None,
        trust: Sequence[str] | None = None,
    ):
        super().__init__(trust)
        self._config, self._known, self._tried = config, list(known), set() if tried is None else tried
        self.teacher_made: nn.Module | None = None

    def stop_at_faults(self, origin_of: Callable[..., str] = lambda key, **_: key) -> None:
        """Raise ConfigError where there are faults, one for each key.

        Args:
            origin_of: (key, literal=) -> the key that a user would change, for a key where a fault is found.
        """
        placed = [Fault(origin_of(f.key, literal=f.literal), f.text) for f in self.faults]
        once = {fault.key or fault.text: fault for fault in reversed([*self._known, *placed])}
        if once:
            raise ConfigError(list(reversed(once.values()))) from self.cause

    def check(self) -> bool:
        """Judge the top level's values, and every `_target_` by the signature; whether the groups are groups."""
        config = self._config
        self._judge(Config, config, "")
        if any(map(self._is_faulty, GROUPS)):
            return False
        fit = {"epochs": None, "seed": None, **config["teacher_fit"]}
        strategy = {"name": None, "stages": None, **config["strategy"]}
        self._judge(TeacherFit, fit, "teacher_fit")
        self._judge(schema.Strategy, strategy, "strategy", literal=True)
        for key, value in leaves(config):
            self._check_number(key, value)
        for group in config:
            self.check_group(group)
        if not self._is_faulty("kd") and config["kd"].get("objective"):
            self.make(config["kd"]["objective"], "kd.objective")
        return True

    def check_group(self, group: str) -> Any:
        """Judge every `_target_` of one group, as has to be done before anything of it is made."""
        node = self._config[group]
        if group in MODEL_ROLES:  # a shape that only the data can tell is not there yet, which is no fault
            weights = node.get("weights")
            if not isinstance(weights, str | None):
                self.fault(f"{group}.weights", f"got {weights!r}, expected the path of a file, or null")
            node = {k: v for k, v in with_told(node, _ANYTHING).items() if k != "weights"}
        return self.make(node, group, call=False)

    def recipe(self, node: Plain, prefix: str = "") -> Recipe | None:
        """How to train, from a node with the keys epochs, optimizer, scheduler and train, which is at `prefix`."""
        # a loss term reads the smoothing
        options = {name: value for name, value in node["train"].items() if name != "label_smoothing"}
        options |= {"epochs": node["epochs"], "precision": self._config["precision"]}
        made = {name: self.make(node[name], f"{prefix}{name}") for name in ("optimizer", "scheduler")}
        place = functools.partial(_recipe_key, prefix=prefix)
        known = self.judge(Recipe, dict.fromkeys([*options, *made], OPEN), place, "a training")
        options |= {
            name: (lambda *_: None) if factory is FAILED else factory for name, factory in made.items()
        }
        recipe = self.attempt(place, lambda: Recipe(**options)) if known else FAILED
        if recipe is FAILED or FAILED in made.values():
            return None
        found = list(factory_faults(recipe))
        for error in found:
            self.fault(place(error.field), error.text)
        return None if found else recipe

    def strategy(self) -> Strategy | None:
        """The stages in order."""
        node, bits = self._config["strategy"], self._config["bits"]
        stages = node.get("stages")
        made = self.make(stages, "strategy.stages") if isinstance(stages, Mapping) else FAILED
        if made is FAILED or self._is_faulty("strategy"):
            return None
        for name, stage in made.items():
            if not isinstance(stage, Stage | Expandable):
                self.fault(f"strategy.stages.{name}._target_", "is no stage: it has no needs_teacher")
        if bits is not None and not any(
            isinstance(getattr(s, "quantization", None), Quantization) for s in made.values()
        ):
            quantize = "a stage compresskd.stages.Quantize, as conf/strategy/distill.yaml has"
            self.fault("bits", f"got {bits}, expected null for strategy {node['name']}, or {quantize}")
        if self._is_faulty("strategy"):
            return None
        strategy = self.attempt(functools.partial(joined, "strategy"), lambda: Strategy(node["name"], made))
        if strategy is not FAILED and not strategy.stages:
            self.fault("bits", "got null, expected 2, 3, 4, 8: the strategy does nothing but quantize")
            return None
        return None if strategy is FAILED else strategy

    def device(self) -> torch.device | None:
        """The device, which this machine must have."""
        device = self.attempt(str, lambda: device_of(self._config["device"], self._config["precision"]))
        return None if device is FAILED else device

    def task(self) -> Task | None:
        """What models are asked; records of version 0.1 know classification alone."""
        node = self._config["task"]
        task = self.make(node, "task") if node else Classification()
        return None if task is FAILED else task

    def check_objectives(self, task: Task, strategy: Strategy) -> None:
        """Note the terms that do not fit the task, of every objective that a stage trains by."""
        chosen = self.make(self._config["kd"].get("objective"), "kd.objective")
        for name, stage in strategy.stages.items():
            objective = getattr(stage, "objective", None)
            if isinstance(objective, Objective):
                own = f"strategy.stages.{strategy.written[name]}.objective"
                key = "kd.objective" if objective == chosen else own
                for error in objective.faults(task):
                    self.fault(f"{key}.{error.field}", error.text)

    def data(self, task: Task | None = None) -> Data | None:
        """The three splits. Where faults are known and loading may take long, only the path is looked at."""
        node = for_task(self._config["data"], task)
        path = node.get("path")
        if isinstance(path, str) and not Path(path).exists():
            self.fault("data.path", f"got {path}, which is not there; write data.path=DIR")
        if ((self._known or self.faults) and (path or node.get("id"))) or self._is_faulty("data"):
            return None
        data = self.make(node, "data")
        if data is not FAILED and not isinstance(data, Data):
            text = f"made a {type(data).__name__}, expected a function that returns compresskd.data.base.Data"
            self.fault("data._target_", text)
        if not isinstance(data, Data) or task is None:
            return data if isinstance(data, Data) else None
        fault = task.faults(data.train.targets, data.num_classes) or _other_tokens(data, task)
        if fault is not None:
            other = f"a task for the targets of data {data.name}, which are {fault}"
            self.fault("task", f"got {task.name}, which needs {task.targets_are}; expected {other}")
            return None
        if not (isinstance(data.train, TensorSplit) and data.train.strata is not None):
            self._refuse_mixup(data)
        return replace(data, task=task)

    def _refuse_mixup(self, data: Data) -> None:
        for key, recipe in (
            ("train", self._config),
            ("teacher_fit.train", self._config.get("teacher_fit", {})),
        ):
            alpha = recipe.get("train", {}).get("mixup")
            if alpha is not None:
                expected = (
                    f"null: samples with one class each are mixed, and those of data {data.name} are not"
                )
                self.fault(f"{key}.mixup", f"got {alpha}, expected {expected}")

    def models(
        self, data: Data | None, strategy: Strategy | None, recipe: Recipe | None, device: torch.device | None
    ) -> None:
        """Build each model once, load its weights, see that it fits the data, that each stage can use and train it."""
        node = self._config["data"]
        shape = data.input_shape if data else node.get("input_shape")
        num_classes = data.num_classes if data else node.get("num_classes")
        if self._is_faulty("data") or self._is_faulty("task") or not num_classes or not (shape or data):
            return
        batches = _trial_batches(data, shape)
        needs_teacher = strategy is None or strategy.needs_teacher or self.from_teacher() is not None
        task = data.task if data else Classification()
        told = told_by(data) if data else {**_ANYTHING, "num_classes": num_classes, "input_shape": shape}
        made: dict[str, nn.Module | None] = {}
        for role in [r for r in MODEL_ROLES if r == "student" or needs_teacher]:  # the teacher first
            made[role] = self._model(role, batches, task, told, made.get("teacher"))
        self.teacher_made = made.get("teacher")
        if isinstance(task, MaskedLM) and None not in made.values():
            self.attempt(functools.partial(joined, "student"), lambda: check_same_vocabulary(made))
        if strategy is not None and None not in made.values():
            trained_on = (data, recipe, device) if data and recipe and device else None
            state = State(made["student"], made.get("teacher"))  # pyright: ignore[reportArgumentType]
            self._check_stages(strategy, state, batches[0].inputs, trained_on)

    def teacher(self, make: Callable[[], Teacher]) -> Teacher | None:
        """How the run comes by its teacher; faults of the teacher's own training have the keys that they have here."""
        if any(map(self._is_faulty, ("teacher", "teacher_fit", "data"))):
            return None
        try:
            return make()
        except (
            ConfigError
        ) as error:  # in its own run the teacher is the student; all else, the run itself names
            self.cause = self.cause or error.__cause__
            for fault in error.faults:
                top, dot, rest = fault.key.partition(".")
                known = {"strategy": "teacher", "student": f"teacher{dot}{rest}"}
                known |= dict.fromkeys(_OF_ITS_RECIPE, f"teacher_fit.{fault.key}")
                if top in known:
                    text = fault.text.replace("the student", "the teacher")
                    self.faults.append(replace(fault, key=known[top], text=text))
        return None

    def _judge(self, kind: type, values: Plain, prefix: str, *, literal: bool = False) -> None:
        for error in faults(kind, values):
            self.fault(joined(prefix, error.field), error.text, literal=literal)

    def _check_number(self, key: str, value: Any) -> None:
        """Note a number that cannot be computed with, or be written into a record."""
        if isinstance(value, float) and value and not _FLOATS.tiny <= abs(value) <= _FLOATS.max:
            expected = (
                "a finite number"
                if not math.isfinite(value)
                else "0, or 1.2e-38 to 3.4e+38 in size (float32)"
            )
            self.fault(key, f"got {value:g}, expected {expected}")
        elif isinstance(value, int) and abs(value) >= 2**63:
            self.fault(key, f"got a number of {value.bit_length()} bits, expected at most 63")

    def from_teacher(self) -> FromTeacher | None:
        """What the student keeps of the teacher, where it is made of it."""
        is_of_it = self._config["student"].get("_target_") == FROM_TEACHER and not self._is_faulty("student")
        made = self.make(_without_weights(self._config["student"]), "student") if is_of_it else None
        return made if isinstance(made, FromTeacher) else None

    def _model(
        self,
        role: str,
        batches: Sequence[Batch],
        task: Task,
        told: Mapping[str, Any],
        teacher: nn.Module | None,
    ) -> nn.Module | None:
        node = self._config[role]
        kept = self.from_teacher() if role == "student" else None
        if self._is_faulty(role) or (kept is not None and teacher is None):
            return None
        if not told["input_shape"] and not node.get("input_shape", True) and self._needs_shape(node, role):
            expected = f"a model of token ids, such as {role}=huggingface, or one of your own ({role}=custom)"
            self.fault(role, f"got {node['_target_']}, which takes samples of one shape, expected {expected}")
            return None
        place = functools.partial(joined, role)
        options = _without_weights(with_told(node, told))
        model = self.attempt(
            place, lambda: kept.student(teacher, 0) if kept and teacher else model_of(options, 0)
        )
        if model is FAILED:
            return None
        if told.get("vocabulary_size") is not None:
            self.attempt(place, lambda: check_vocabulary(model, told["vocabulary_size"]))
        folder = weights_folder(options) if told.get("tokenizer") else None
        if folder is not None:
            self.attempt(place, lambda: check_tokenizer(folder.path, told["tokenizer"]))
        fits = self.attempt(place, lambda: check_answers(model, batches, task, told["num_classes"]))
        if node.get("weights"):
            self.attempt(lambda _: f"{role}.weights", lambda: load_weights(model, node["weights"]))
        return None if fits is FAILED else model

    def _needs_shape(self, node: Plain, role: str) -> bool:
        """Whether a model cannot be made for samples that have no shape in common."""
        function = self._function(node["_target_"], role)
        return function is not None and bool(faults(function, {"input_shape": []}))

    def _check_stages(
        self,
        strategy: Strategy,
        state: State,
        example: Inputs,
        trained_on: tuple[Data, Recipe, torch.device] | None,
    ) -> None:
        for name, stage in strategy.stages.items():
            key = f"strategy.stages.{strategy.written[name]}"
            if isinstance(stage, Checked):
                check = functools.partial(stage.check, state, example)
                checked = self.attempt(functools.partial(joined, key), check)
                state = state if checked is FAILED else checked
            training = getattr(stage, "training", None)
            if isinstance(training, Training) and trained_on is not None and not self._is_faulty(key):
                self._try_training(name, key, training, state, *trained_on)

    def _try_training(
        self,
        stage: str,
        key: str,
        training: Training,
        state: State,
        data: Data,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        """Try one training, unless the like of it has passed: of another stage, or in another job of the sweep."""
        alike = [self._config.get(name) for name in _OF_A_TRAINING]
        like = repr((training, state.student, state.teacher, alike))

        def place(field: str) -> str:
            holder, _, rest = field.partition(".")
            places = {"": key, "recipe": _recipe_key(rest), "training": joined(key, rest)}
            return places.get(holder, field)

        if like not in self._tried:
            tried = functools.partial(try_training, stage, training, state, data, recipe, device)
            if self.attempt(place, tried) is not FAILED:
                self._tried.add(like)

    def _is_faulty(self, key: str) -> bool:
        """Whether something at or below `key` is wrong."""
        return any(f.key == key or f.key.startswith((f"{key}.", f"{key}[")) for f in self.faults)


def _other_tokens(data: Data, task: Task) -> str | None:
    """What the tokens of the data are asked, where it is another thing than the task asks of tokens."""
    kind = data.preprocessing.get("kind")
    if kind == "text_blocks" and not isinstance(task, CausalLM):
        return CausalLM.targets_are
    if kind == "tokens" and (not isinstance(task, TokenClassification) or isinstance(task, MaskedLM)):
        return TokenClassification.targets_are
    return None


def _trial_batches(data: Data | None, shape: Sequence[int]) -> list[Batch]:
    """Two samples, and one: zeros of the shape of the data, or the first of those that have none in common.

    Texts are followed by the longest of each split, and the one with the largest number of a token.
    """
    if data is None or isinstance(data.train, TensorSplit):
        return [
            Batch(torch.zeros(n, *shape), torch.zeros(n, dtype=torch.long), torch.arange(n), 0)
            for n in (2, 1)
        ]
    few = [data.validation.take(torch.arange(n), "") for n in (2, 1)]
    splits = (data.train, data.validation, data.test)
    few += [split.take(split.extremes, "") for split in splits if isinstance(split, TextSplit)]
    return [next(iter(split.batches(len(split)))) for split in few]


def _recipe_key(field: str, prefix: str = "") -> str:
    """The key of an option of a `Recipe`."""
    top = field.partition(".")[0]
    own = top in ("epochs", "optimizer", "scheduler")
    return field if top == "precision" else f"{prefix}{field if own else joined('train', field)}"


def for_task(node: Plain, task: Task | None) -> Plain:
    """A node of data with what the task asks of the samples, where it has such a key and the user says nothing."""
    return {**node, "asks": task.asks} if task is not None and node.get("asks", "") is None else node


def told_by(data: Data) -> dict[str, Any]:
    """What loaded data tell of themselves, by the names that nodes of models and of data have for it."""
    return {
        "num_classes": data.num_classes,
        "input_shape": list(data.input_shape),
        "task": data.task.name,
        "class_names": list(data.class_names),
        "tokenizer": data.preprocessing.get("tokenizer"),
        "vocabulary_size": data.preprocessing.get("vocabulary_size"),
        "pad_token_id": data.preprocessing.get("padding_id"),
    }


def with_shape(node: Plain, told: Mapping[str, Any]) -> dict[str, Any]:
    """A node of data with what only the loaded data could tell."""
    return with_told(node, {name: told[name] for name in ("num_classes", "input_shape")})


def with_told(node: Plain, told: Mapping[str, Any]) -> dict[str, Any]:
    """A node of a model with what only the loaded data could tell."""
    return {**node, **{k: v for k, v in told.items() if k in node and node[k] is None}}


def _without_weights(node: Plain) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != "weights"}


def model_of(node: Plain, seed: int) -> nn.Module:
    """The model that a node describes, with its weights where it names some."""
    options = {k: v for k, v in node.items() if k not in ("_target_", "weights")}
    model = build_model(node["_target_"], options, seed=seed)
    if node.get("weights"):
        load_weights(model, Path(node["weights"]))
    return model
