"""Which kind of class or function each `_target_` of the configuration may name, by its key."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from compresskd.compression import rank_schedule
from compresskd.config.origin import leaves
from compresskd.data.base import Data
from compresskd.kd.objective import Objective
from compresskd.options import hints_of
from compresskd.stages import Compression, Quantization
from compresskd.targets.kinds import MODULE, PART, Kind, is_class_of, resolve_kind
from compresskd.targets.paths import check_trusted, is_shipped
from compresskd.tasks import Task


def _is_function(found: Any, home: str, made: Any) -> bool:
    """Whether it is a public function of a module of compresskd, or below, that says that it returns `made`."""
    if not inspect.isfunction(found) or found.__name__.startswith("_"):
        return False
    is_there = f"{found.__module__}.".startswith(f"compresskd.{home}.")
    return is_there and typing.get_type_hints(found).get("return") == made


def _has(home: str, *names: str) -> Callable[[Any], bool]:
    """Whether it is a class of a part of compresskd that has these attributes itself."""
    is_there = is_class_of(object, f"compresskd.{home}")
    return lambda found: (
        is_there(found) and all(any(name in vars(base) for base in found.__mro__[:-1]) for name in names)
    )


def _any_of(*tests: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda found: any(test(found) for test in tests)


_is_stage = _any_of(_has("stages", "needs_teacher", "__call__"), _has("stages", "expand"))
_is_term = _has("kd", "kind", "__call__")
_is_schedule = lambda found: _is_function(found, "compression.rank_schedule", list[rank_schedule.Step])  # noqa: E731
_is_plan = lambda found: found in (Compression, Quantization)  # noqa: E731

_DATA = Kind(
    "a function that returns compresskd.data.base.Data",
    Data,
    lambda found: _is_function(found, "data", Data),
)
_AUGMENTATION = Kind(
    "an augmentation: a class of compresskd.data.augmentation or of your own",
    None,
    _has("data.augmentation", "num_draws", "__call__"),
)
_OPTIMIZER = Kind(
    "a subclass of torch.optim.Optimizer",
    torch.optim.Optimizer,
    is_class_of(torch.optim.Optimizer, "torch.optim"),
)
_SCHEDULER = Kind(
    "a function that returns a torch.optim.lr_scheduler.LRScheduler",
    LRScheduler,
    _any_of(
        lambda found: _is_function(found, "training.schedules", LRScheduler),
        is_class_of(LRScheduler, "torch.optim.lr_scheduler"),
    ),
)
_OBJECTIVE = Kind(
    "compresskd.kd.objective.Objective, or an objective of your own", None, lambda found: found is Objective
)
_TERM = Kind("a loss term: a class of compresskd.kd or of your own", None, _is_term)
RANK_SCHEDULE = Kind(
    "a schedule of ranks: a function of compresskd.compression.rank_schedule or of your own",
    None,
    _is_schedule,
)
_PLAN = Kind("compresskd.stages.Compression or compresskd.stages.Quantization", None, _is_plan)
_STAGE = Kind("a stage: a class of compresskd.stages or of your own", None, _is_stage)
_TASK = Kind(
    "a task: a class of compresskd.tasks, or a subclass of compresskd.tasks.Task",
    Task,
    is_class_of(Task, "compresskd.tasks"),
)
_INSIDE = Kind(
    "part of a stage: a loss term, an objective, a plan, a stage, or a class or function of your own",
    None,
    _any_of(_is_term, _is_plan, _is_stage, _is_schedule, lambda found: found is Objective),
)
_OWN = Kind("a class or function of your own", None, lambda found: False)

# The first that fits a key counts.
_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"data", _DATA),
    (r"task", _TASK),
    (r"data\.augmentation(\..*)?", _AUGMENTATION),
    (r"(teacher|student)", MODULE),
    (r"(teacher|student)\..*", PART),
    (r"(.*\.)?optimizer", _OPTIMIZER),
    (r"(.*\.)?scheduler", _SCHEDULER),
    (r"(.*\.)?objective", _OBJECTIVE),
    (r"(.*\.)?objective\.terms\.[^.]*", _TERM),
    (r"(compress|quant|.*\.(compression|quantization))", _PLAN),
    (r"(rank_schedule|strategy\.stages\.[^.]*\.stages)", RANK_SCHEDULE),
    (r"strategy\.stages\.[^.]*", _STAGE),
    (r"(strategy|kd)\..*", _INSIDE),
)


def kind_of(key: str) -> Kind:
    """What the `_target_` at a dotted key may name."""
    return next((kind for pattern, kind in _KINDS if re.fullmatch(pattern, key)), _OWN)


def resolve_allowed(path: str, key: str, *, trust: Sequence[str] | None) -> Callable[..., Any]:
    """The class or function that the `_target_` at a key names.

    Args:
        path: dotted, of the `_target_`.
        key: dotted, of the node that it is in.
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.

    Raises:
        ValueError: it is nothing, or nothing of the kind that the key takes, or not trusted (then before it is
            imported).
    """
    if trust is not None:
        check_trusted(path, trust=trust)
    return resolve_kind(path, kind_of(key))


def parameters(function: Callable[..., Any]) -> tuple[dict[str, bool], bool]:
    """Each option of a class or function -> whether it must be given; and whether it takes any others."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in C, says nothing of itself
        return {}, True
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {n: p.default is inspect.Parameter.empty for n, p in known.items() if p.kind not in various}
    unpacked = {name: False for name in hints_of(function) if name not in known and name != "return"}
    any_other = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in known.values())
    return named | unpacked, any_other and not unpacked


def options_of(path: Any, key: str) -> dict[str, bool]:
    """The options of what a `_target_` at a key names; none where it names nothing that may stand there."""
    try:
        return parameters(resolve_allowed(path, key, trust=None))[0]
    except ValueError:
        return {}


def outside_targets(node: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, path) of every `_target_` in plain values that names code outside of what is shipped."""
    for key, path in leaves(node):
        if (
            f".{key}".endswith("._target_")
            and isinstance(path, str)
            and path != "???"
            and not is_shipped(path)
        ):
            yield key, path
