"""The parts of an experiment, made one after the other; what goes wrong is collected, not raised."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compresskd.config.allowed import resolve_allowed
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import leaves, origin
from compresskd.config.schema import DEFAULTS, GROUPS, MODEL_ROLES, Config, StrategyNode, TeacherFit
from compresskd.data import unlabelled
from compresskd.data.base import Data, TensorSplit
from compresskd.data.text.prune import KEY as PRUNE
from compresskd.data.text.split import TextSplit
from compresskd.engine.strategy import Checked, Expandable, Stage, State, Strategy
from compresskd.kd.objective import Objective
from compresskd.models.build import build as build_model
from compresskd.models.from_teacher import FROM_TEACHER, FromTeacher
from compresskd.models.huggingface import weights_folder
from compresskd.models.prune import with_tokens
from compresskd.models.vocabulary import (
    check_padding,
    check_same_vocabulary,
    check_tokenizer,
    check_vocabulary,
    is_padded,
    rows_of,
)
from compresskd.models.weights import load_weights
from compresskd.options import faults, joined, nearest, raise_all, shown
from compresskd.stages import Quantization
from compresskd.stages.dry_run import check_answers, try_training
from compresskd.stages.train_student import Training
from compresskd.targets.nodes import UNMADE, Maker, Place
from compresskd.tasks import (
    Batch,
    CausalLM,
    Classification,
    MaskedLM,
    Seq2SeqLM,
    Task,
    TokenClassification,
)
from compresskd.training import Recipe
from compresskd.training.dry_run import factory_faults
from compresskd.training.precision import device_of

Plain = Mapping[str, Any]
_FLOATS = torch.finfo(torch.float32)
# What a trial of training depends on, beside the models' structure and the stage.
_OF_A_TRAINING = (
    "data", "task", "teacher", "student", "train", "optimizer", "scheduler", "quant", "precision", "device",
)  # fmt: skip
# Stands for what the data will tell, where only the kinds of values are judged.
_ANYTHING = {"num_classes": 2, "input_shape": [1], "task": "classification", "class_names": []}


class Parts(Maker):
    """Makes the parts of one experiment; a part that cannot be made is None.

    Attributes:
        config: resolved; `data` completes it by what only the data can tell.

    Args:
        written: the configuration before it was resolved, which tells what key a user would change.
        known: faults found before.
        shared: what the jobs of a sweep have in common, data and trainings that passed a trial; what is new is added.
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.
    """

    def __init__(
        self,
        config: Plain,
        *,
        written: Plain | None = None,
        known: Sequence[Fault] = (),
        shared: dict[str, Any] | None = None,
        trust: Sequence[str] | None = None,
    ):
        super().__init__(functools.partial(resolve_allowed, trust=trust))
        self.config, self._written, self._known = config, written or config, list(known)
        self._shared = {} if shared is None else shared

    def stop_at_faults(self) -> None:
        """Raise ConfigError where there are faults, one for each key."""
        placed = [Fault(origin(self._written, e.field, literal=e.literal), e.text) for e in self.errors]
        once = {fault.key or fault.text: fault for fault in reversed([*self._known, *placed])}
        if once:
            raise ConfigError(list(reversed(once.values()))) from self.cause

    def check(self) -> None:
        """Judge the top level's values, and every `_target_` by the signature.

        Raises:
            ConfigError: a key is missing, or a group is none, so that nothing can be made.
        """
        config = self.config
        for name, default in DEFAULTS.items():
            if name not in config:
                self.refuse(name, f"is missing; write {name}=VALUE")
            elif default == {} and not isinstance(config[name], Mapping):
                self.refuse(name, f"got {shown(config[name])}, expected a mapping of options")
        incomplete = bool(self.errors)
        for name in config.keys() - DEFAULTS.keys():
            self.refuse(name, f"unknown option{nearest(name, DEFAULTS)}", literal=True)
        self.judge(Config, {k: v for k, v in config.items() if k not in GROUPS and k in DEFAULTS}, str, "it")
        if incomplete:
            self.stop_at_faults()
        for holder in ("tt", "measure"):
            self._check_keys(holder)
        self.judge(TeacherFit, config["teacher_fit"], functools.partial(joined, "teacher_fit"), "teacher_fit")
        before = len(self.errors)
        own = {name: config["strategy"][name] for name in ("name", "stages") if name in config["strategy"]}
        self.judge(StrategyNode, own, functools.partial(joined, "strategy"), "strategy")
        for error in self.errors[before:]:  # the name of a stage, whatever it refers to
            error.literal = True
        for key, value in leaves(config):
            if isinstance(value, float) and value and not _FLOATS.tiny <= abs(value) <= _FLOATS.max:
                expected = "a finite number, 0 or 1.2e-38 to 3.4e+38 in size (float32)"
                self.refuse(key, f"got {value:g}, expected {expected}")
            elif isinstance(value, int) and abs(value) >= 2**63:
                self.refuse(key, f"got a number of {value.bit_length()} bits, expected at most 63")
        for group in GROUPS:
            self.check_group(group)

    def _check_keys(self, holder: str) -> None:
        """Refuse keys of a mapping that are missing, and those that nothing reads."""
        given, known = self.config[holder], DEFAULTS[holder]
        if not isinstance(given, Mapping):
            return  # told by its type
        for name in known.keys() - given.keys():
            key = f"{holder}.{name}"
            self.refuse(key, f"is missing; write {key}={known[name]}".lower())
        for name in given.keys() - known.keys():
            self.refuse(f"{holder}.{name}", f"unknown option{nearest(name, known)}", literal=True)

    def check_group(self, group: str) -> None:
        """Judge every `_target_` of one group, as has to be done before anything of it is made."""
        node = self.config[group]
        if group in MODEL_ROLES:  # a shape that only the data can tell is not there yet, which is no fault
            # records of texts have an empty shape
            shapeless = {"input_shape": None} if node.get("input_shape") == [] else {}
            node = _without(_with_told({**node, **shapeless}, _ANYTHING), "weights")
        self.make(node, group, call=False)

    def trackers(self) -> dict[str, Any]:
        """Who follows the run, by name; each is asked once for all jobs of a sweep whether it can."""
        made, outputs = {}, self.config["outputs_dir"]
        for name, node in self.config["tracker"].items():
            place = functools.partial(joined, f"tracker.{name}")
            if not (isinstance(node, Mapping) and "_target_" in node):
                self.refuse(place(""), f"got {shown(node)}, expected a tracker; write tracker=NAME")
                continue
            key = f"tracker {name} {json.dumps(node, sort_keys=True)} {outputs}"
            tracker = self.make(node, place(""))
            if tracker is not UNMADE and self._shared.get(key) is None and isinstance(outputs, str):
                fine = self.attempt(place, lambda each=tracker: each.check(Path(outputs)) or True)
                self._shared[key] = None if fine is UNMADE else fine
            made[name] = tracker
        return made

    def recipe(self, node: Plain, prefix: str = "") -> Recipe | None:
        """How to train, from a node with the keys epochs, optimizer, scheduler and train, which is at `prefix`."""
        if prefix and self._is_faulty(prefix.rstrip(".")):
            return None
        options = _without(node["train"], "label_smoothing")  # which a loss term reads
        options |= {"epochs": node["epochs"], "precision": self.config["precision"]}
        made = {name: self.make(node[name], f"{prefix}{name}") for name in ("optimizer", "scheduler")}
        place = functools.partial(_recipe_key, prefix=prefix)
        if not self.judge(Recipe, dict.fromkeys([*options, *made], UNMADE), place, "a training"):
            return None
        factories: Plain = {name: (lambda *_: None) if f is UNMADE else f for name, f in made.items()}
        recipe = self.attempt(place, lambda: Recipe(**options, **factories))
        if recipe is UNMADE or factories != made:
            return None
        found = self.attempt(place, lambda: raise_all(factory_faults(recipe)))
        return None if found is UNMADE else recipe

    def strategy(self) -> Strategy | None:
        """The stages in order."""
        node, bits = self.config["strategy"], self.config["bits"]
        stages = node.get("stages")
        made = self.make(stages, "strategy.stages") if isinstance(stages, Mapping) else UNMADE
        if made is UNMADE or self._is_faulty("strategy"):
            return None
        for name, stage in made.items():
            if not isinstance(stage, Stage | Expandable):
                self.refuse(f"strategy.stages.{name}._target_", "is no stage: it has no needs_teacher")
        kinds = [getattr(stage, "quantization", None) for stage in made.values()]
        if bits is not None and not any(isinstance(kind, Quantization) for kind in kinds):
            quantize = "a stage compresskd.stages.Quantize, as conf/strategy/distill.yaml has"
            self.refuse("bits", f"got {bits}, expected null for strategy {node['name']}, or {quantize}")
        if self._is_faulty("strategy"):
            return None
        strategy = self.attempt(functools.partial(joined, "strategy"), lambda: Strategy(node["name"], made))
        if strategy is not UNMADE and not strategy.stages:
            self.refuse("bits", "got null, expected 2, 3, 4, 8: the strategy does nothing but quantize")
        return strategy if strategy is not UNMADE and strategy.stages else None

    def device(self) -> torch.device | None:
        """The device, which this machine must have."""
        device = self.attempt(str, lambda: device_of(self.config["device"], self.config["precision"]))
        return None if device is UNMADE else device

    def task(self) -> Task | None:
        """What models are asked; records of version 0.1 know classification alone."""
        node = self.config["task"]
        task = self.make(node, "task") if node else Classification()
        return None if task is UNMADE else task

    def check_objectives(self, task: Task, strategy: Strategy, key: str | None = None) -> None:
        """Note the terms that do not fit the task, of every objective that a stage trains by, at `key` if given."""
        smoothing = self.config["train"].get("label_smoothing")
        if task.targets_of_teacher and smoothing:
            self.refuse(
                "train.label_smoothing", f"got {smoothing}, expected 0: task {task.name} has no labels"
            )
        chosen = self.make(self.config["kd"].get("objective"), "kd.objective")
        for name, stage in strategy.stages.items():
            objective = getattr(stage, "objective", None)
            if isinstance(objective, Objective):
                own = f"strategy.stages.{strategy.written[name]}.objective"
                place = functools.partial(joined, "kd.objective" if objective == chosen else own)
                place = place if key is None else (lambda _, key=key: key)
                self.attempt(place, functools.partial(raise_all, objective.faults(task)))

    def check_unlabelled(self, strategy: Strategy) -> None:
        """Refuse samples without labels where no stage trains by what a teacher says of them, or one needs labels."""
        typed = {
            key: self.config["data"][key]
            for key in unlabelled.KEYS
            if self.config["data"].get(key) is not None
        }
        if not typed:
            return
        seeing = comparing(strategy)
        if self.config["data"].get(PRUNE):
            typed.pop(unlabelled.KEY, None)  # their words stay in the tokenizer
        for key, value in () if seeing else typed.items():
            needs = "null, or a strategy and an objective that train by a teacher (strategy=distill kd=soft_targets)"
            self.refuse(f"data.{key}", f"got {value}, expected {needs}: nothing else would see it")
        for objective in seeing:
            place = functools.partial(joined, "kd.objective")
            self.attempt(place, functools.partial(raise_all, objective.unlabelled_faults()))

    def check_sharding(self, strategy: Strategy) -> None:
        """Refuse parts of weights where a stage trains that factorizes or rounds them, or comes after such a one."""
        sharding = self.config["train"].get("sharding")
        reducing = None
        for name, stage in strategy.stages.items():
            if hasattr(stage, "compression") or hasattr(stage, "quantization"):
                reducing = reducing or strategy.written[name]
            training = getattr(stage, "training", None)
            if sharding is not None and reducing and training and training.epochs:
                expected = f"null: {reducing}, and what trains after it, works on whole weights"
                self.refuse("train.sharding", f"got {shown(sharding)}, expected {expected}")
                return

    def check_packed(self, strategy: Strategy, num_outputs: int | None) -> None:
        """Refuse the largest outputs of a teacher where no stage sees one, or a term needs all that it says."""
        if self.config["teacher_fit"].get("train", {}).get("teacher_outputs") is not None:
            self.refuse(
                "teacher_fit.train.teacher_outputs", "expected null: a teacher is trained by labels alone"
            )
        k = self.config["train"].get("teacher_outputs")
        if not isinstance(k, int) or self._is_faulty("train.teacher_outputs"):
            return
        seeing = comparing(strategy)
        if not seeing:
            if not _trainings(strategy):
                return  # as with all options of a training that none of its stages is (a sweep has such jobs)
            needs = "null, or a strategy and an objective that train by a teacher (strategy=distill kd=soft_targets)"
            self.refuse("train.teacher_outputs", f"got {k}, expected {needs}")
        elif num_outputs is not None and k >= num_outputs:
            expected = f"null, or < {num_outputs}, the outputs that there are: all of them need no rest"
            self.refuse("train.teacher_outputs", f"got {k}, expected {expected}")
        for objective in seeing:
            place = functools.partial(joined, "kd.objective")
            self.attempt(place, functools.partial(raise_all, objective.packed_faults()))

    def data(self, task: Task | None = None) -> Data | None:
        """The three splits. Where faults are known and loading may take long, only the path is looked at."""
        node = self.config["data"]
        if task is not None and node.get("asks", "") is None:  # what the user leaves to the task
            node = {**node, "asks": task.asks}
            self.config = {**self.config, "data": node}
        for name in ("path", "unlabelled_path"):
            place = node.get(name)
            if isinstance(place, str) and not Path(place).exists():
                self.refuse(f"data.{name}", f"got {place}, which is not there; write data.{name}=DIR")
        path, key = node.get("path"), json.dumps([node, self.config.get("task")], sort_keys=True)
        takes_long = (self._known or self.errors) and (path or node.get("id"))
        data = self._shared.get(key)
        if data is None and not takes_long and not self._is_faulty("data"):
            data = self.make(node, "data")
            if data is not UNMADE and not isinstance(data, Data):
                self.refuse(
                    "data._target_", f"made a {type(data).__name__}, expected compresskd.data.base.Data"
                )
            elif data is not UNMADE and task is not None:
                data = self._for_task(data, task)
        if isinstance(data, Data) and task is not None:
            self._refuse_mixup(data)
        if not isinstance(data, Data):
            return None
        self._shared[key] = data
        told = _told_by(data)
        # all that data itself takes
        shape = {"num_classes": told["num_classes"] or None, "input_shape": told["input_shape"]}
        models = {role: self.config.get(role, {}) for role in MODEL_ROLES}
        models = {role: _with_told(model, _told_to(model, told, data)) for role, model in models.items()}
        self.config = {**self.config, "data": _with_told(node, shape), **models}
        return data

    def _for_task(self, data: Data, task: Task) -> Data | None:
        fault = task.faults(data.train.targets, data.num_classes) or _other_tokens(data, task)
        if fault is None:
            return replace(data, task=task)
        other = f"a task for the targets of data {data.name}, which are {fault}"
        self.refuse("task", f"got {task.name}, which needs {task.targets_are}; expected {other}")
        return None

    def _refuse_mixup(self, data: Data) -> None:
        if isinstance(data.train, TensorSplit) and data.train.strata is not None and not data.unlabelled:
            return
        what = "samples without labels" if data.unlabelled else f"those of data {data.name}"
        fit = self.config.get("teacher_fit", {})
        for key, recipe in (("train", self.config), ("teacher_fit.train", fit)):
            alpha = recipe.get("train", {}).get("mixup")
            if alpha is not None:
                expected = f"null: only samples with one class each are mixed, not {what}"
                self.refuse(f"{key}.mixup", f"got {alpha}, expected {expected}")

    def from_teacher(self) -> FromTeacher | None:
        """What the student keeps of the teacher, where it is made of it."""
        node = self.config["student"]
        if node.get("_target_") != FROM_TEACHER or self._is_faulty("student"):
            return None
        kept = self.make(_without(node, "weights"), "student")
        return None if kept is UNMADE else kept

    def models(self, strategy: Strategy | None, *trained_on: Any) -> nn.Module | None:
        """Build each model once, load its weights, see that it fits the data, that each stage can use and train it.

        Args:
            trained_on: data, recipe and device; where one of them is missing nothing is trained.

        Returns:
            The teacher, where the strategy or the student needs one and it fits.
        """
        data, node = trained_on[0], self.config["data"]
        typed = {name: node.get(name) for name in ("num_classes", "input_shape")}
        told = _told_by(data) if data else {**_ANYTHING, **typed}
        is_known = told["num_classes"] is not None and (told["input_shape"] or data)
        if any(map(self._is_faulty, ("data", "task"))) or not is_known:
            return None
        batches = _trial_batches(data, told["input_shape"])
        task = data.task if data else Classification()
        needs_teacher = strategy is None or strategy.needs_teacher or self.from_teacher() is not None
        needs_teacher = needs_teacher or task.targets_of_teacher
        teacher = self._model("teacher", batches, task, told) if needs_teacher else None
        student = self._model("student", batches, task, told, teacher)
        for model in (teacher, student):
            if model is not None and data is not None and isinstance(data.train, TextSplit):
                texts = (node.get("tokenizer"), data.preprocessing, data.train.columns["input_ids"])
                padding = functools.partial(check_padding, model, *texts)
                self.attempt(functools.partial(joined, "data"), padding)
        if isinstance(task, MaskedLM) and student is not None and teacher is not None:
            both = {"teacher": teacher, "student": student}
            self.attempt(functools.partial(joined, "student"), lambda: check_same_vocabulary(both))
        if strategy is None or student is None or (teacher is None and needs_teacher):
            return teacher
        first = student if strategy.needs_student or teacher is None else teacher
        del student  # as in the run itself: where the first stage makes one of the teacher, none is kept
        state = State(first, teacher)
        for name, stage in strategy.stages.items():
            if self._is_faulty("kd") and hasattr(stage, "objective"):
                continue  # what is wrong with its terms is told already
            key = f"strategy.stages.{strategy.written[name]}"
            if isinstance(stage, Checked):
                check = functools.partial(stage.check, state, batches[0].inputs)
                checked = self.attempt(functools.partial(joined, key), check)
                state = state if checked is UNMADE else checked
            if not self._is_faulty(key):
                self.trial(name, stage, state, trained_on, functools.partial(trial_key, key), self.config)
        return teacher

    def trial(
        self, name: str, stage: Stage, state: State, trained_on: Sequence[Any], place: Place, config: Plain
    ) -> None:
        """Try the training of a stage, unless the like of it has passed: of another, or in another job of the sweep."""
        training = getattr(stage, "training", None)
        alike = (training, state.student, state.teacher, [config.get(key) for key in _OF_A_TRAINING])
        if isinstance(training, Training) and None not in trained_on and repr(alike) not in self._shared:
            tried = functools.partial(try_training, name, training, state, *trained_on)
            if self.attempt(place, tried) is not UNMADE:
                self._shared[repr(alike)] = True

    def _model(
        self, role: str, batches: Sequence[Batch], task: Task, told: Plain, teacher: nn.Module | None = None
    ) -> nn.Module | None:
        node, place = self.config[role], functools.partial(joined, role)
        kept = self.from_teacher() if role == "student" else None
        if self._is_faulty(role) or (kept is not None and teacher is None):
            return None
        weights, tokens = node.get("weights"), told.get("kept")
        if not told["input_shape"] and not node.get("input_shape", True) and self._needs_shape(node, role):
            expected = f"a model of token ids, such as {role}=huggingface, or one of your own ({role}=custom)"
            self.refuse(
                role, f"got {node['_target_']}, which takes samples of one shape, expected {expected}"
            )
            return None
        options = _without(_with_told(node, told), "weights")
        # rows are left out of what is loaded
        make = functools.partial(model_of, {**options, "weights": tokens and weights}, 0, tokens)
        if kept is not None and teacher is not None:
            make = functools.partial(kept.student, teacher, 0)
        model = self.attempt(place, make)
        if model is UNMADE:
            return None
        rows = told.get("vocabulary_size") or 0
        if self.attempt(place, lambda: check_vocabulary(model, rows)) is UNMADE:
            return None
        folder = weights_folder(options) if told.get("tokenizer") else None
        if folder is not None:
            self.attempt(place, lambda: check_tokenizer(folder.path, told["whole"]))
        fits = self.attempt(place, lambda: check_answers(model, batches, task, told["num_classes"]))
        if weights is not None and kept is not None:
            expected = "null: a student of the teacher's architecture starts from the teacher, or at random"
            self.refuse(f"{role}.weights", f"got {shown(weights)}, expected {expected}")
        elif weights is not None and tokens is None:
            self.attempt(lambda _: f"{role}.weights", lambda: load_weights(model, weights))
        return None if fits is UNMADE else model

    def _needs_shape(self, node: Plain, role: str) -> bool:
        """Whether a model cannot be made for samples that have no shape in common."""
        return bool(faults(self._find(node["_target_"], role), {"input_shape": []}))

    def _is_faulty(self, key: str) -> bool:
        """Whether something at or below `key` is wrong."""
        return any(e.field == key or e.field.startswith((f"{key}.", f"{key}[")) for e in self.errors)


def comparing(strategy: Strategy) -> list[Objective]:
    """The objectives of the stages that train by what a teacher says."""
    return [each.objective for each in _trainings(strategy) if each.objective.needs_teacher]


def _trainings(strategy: Strategy) -> list[Training]:
    found = (getattr(stage, "training", None) for stage in strategy.stages.values())
    return [each for each in found if each]


def _other_tokens(data: Data, task: Task) -> str | None:
    """What the tokens of the data are asked, where it is another thing than the task asks of tokens."""
    kind = data.preprocessing.get("kind")
    hides = isinstance(data.train, TextSplit) and data.train.masking is not None
    if hides:
        fits = isinstance(task, MaskedLM) and not isinstance(task, CausalLM | Seq2SeqLM)
        return None if fits else MaskedLM.targets_are
    if (kind == "text_to_text") != isinstance(task, Seq2SeqLM) and isinstance(data.train, TextSplit):
        return Seq2SeqLM.targets_are if kind == "text_to_text" else "no texts that follow"
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
    most = len(data.validation)
    few = [data.validation.take(torch.arange(min(n, most)), "") for n in (2, 1)]
    splits = (data.train, data.validation, data.test)
    few += [split.take(split.extremes, "") for split in splits if isinstance(split, TextSplit)]
    return [next(iter(split.batches(len(split)))) for split in few]


def trial_key(stage: str, field: str, *, student: str = "student", prefix: str = "") -> str:
    """The key of what a trial of a stage's training names, with those of its student and of its recipe."""
    holder, _, rest = field.partition(".")
    own = {
        "": stage,
        "recipe": _recipe_key(rest, prefix),
        "training": joined(stage, rest),
        "student": student,
    }
    return own.get(holder, field)


def _recipe_key(field: str, prefix: str = "") -> str:
    """The key of an option of a `Recipe`."""
    top = field.partition(".")[0]
    own = top in ("epochs", "optimizer", "scheduler")
    return field if top == "precision" else f"{prefix}{field if own else joined('train', field)}"


def _told_by(data: Data) -> dict[str, Any]:
    """What loaded data tell of themselves, by the names that nodes of models and of data have for it."""
    return {
        "num_classes": data.num_classes,
        "input_shape": list(data.input_shape),
        "task": data.task.name,
        "class_names": list(data.class_names),
        "tokenizer": data.preprocessing.get("tokenizer"),
        "whole": data.vocabulary.whole if data.vocabulary else data.preprocessing.get("tokenizer"),
        "kept": data.vocabulary.kept.tolist() if data.vocabulary else None,
        "vocabulary_size": data.preprocessing.get("vocabulary_size"),
        "pad_token_id": data.preprocessing["padding_id"] if is_padded(data.preprocessing) else None,
    }


def _told_to(node: Plain, told: Plain, data: Data) -> Plain:
    """What is told to a model: of all tokens where it has weights, of which some are left out when they are loaded."""
    if data.vocabulary is None or not (node.get("id") or node.get("weights")):
        return told
    whole = {"vocabulary_size": data.vocabulary.size}
    if told["pad_token_id"] is not None:
        whole["pad_token_id"] = data.vocabulary.padding_id
    return {**told, **whole}


def _with_told(node: Plain, told: Plain) -> dict[str, Any]:
    """A node of a model or of data with what only the loaded data could tell."""
    return {**node, **{k: v for k, v in told.items() if k in node and node[k] is None}}


def _without(node: Plain, *names: str) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name not in names}


def model_of(node: Plain, seed: int, kept: Sequence[int] | None = None) -> nn.Module:
    """The model that a node describes, with its weights where it names some.

    Args:
        kept: the tokens that are left, whose rows alone it has; weights may be of all, or of these. None: all are.
    """
    model = build_model(node["_target_"], _without(node, "_target_", "weights"), seed=seed)
    weights = node.get("weights")
    try:
        if weights:
            load_weights(model, Path(weights))
    except ValueError:
        if not weights or kept is None or rows_of(model) == len(kept):
            raise
        model, kept = with_tokens(model, kept, seed), None
        load_weights(model, Path(weights))
    return model if kept is None else with_tokens(model, kept, seed)
