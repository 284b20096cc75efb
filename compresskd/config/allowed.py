"""Which kind of class or function each `_target_` of the configuration may name, by its key."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from compresskd.compression import rank_schedule
from compresskd.config.origin import leaves
from compresskd.data.base import Data
from compresskd.kd.objective import Objective
from compresskd.stages import Compression, Quantization
from compresskd.targets.kinds import MODULE, PART, Kind, is_class_of, resolve_kind
from compresskd.targets.paths import check_trusted, is_shipped
from compresskd.tasks import Task

Test = Callable[[Any], bool]


def _returns(home: str, made: Any) -> Test:
    """Whether it is a public function of a module of compresskd, or below, that says that it returns `made`."""
    return lambda found: (
        inspect.isfunction(found)
        and not found.__name__.startswith("_")
        and f"{found.__module__}.".startswith(f"compresskd.{home}.")
        and typing.get_type_hints(found).get("return") == made
    )


def _has(home: str, *names: str) -> Test:
    """Whether it is a class of a part of compresskd that has these attributes itself."""
    is_there = is_class_of(object, f"compresskd.{home}")
    return lambda found: (
        is_there(found) and all(any(name in vars(base) for base in found.__mro__[:-1]) for name in names)
    )


def _any_of(*tests: Test) -> Test:
    return lambda found: any(test(found) for test in tests)


def _own(what: str, *tests: Test) -> Kind:
    return Kind(f"{what} of compresskd, or a class or function of your own", None, _any_of(*tests))


_STAGE = _any_of(_has("stages", "needs_teacher", "__call__"), _has("stages", "expand"))
_TERM, _OBJECTIVE = _has("kd", "kind", "__call__"), lambda found: found is Objective
_PLAN, _SCHEDULE = (
    lambda found: found in (Compression, Quantization),
    _returns("compression.rank_schedule", list[rank_schedule.Step]),
)
_OPTIMIZER = is_class_of(Optimizer, "torch.optim")
_SCHEDULER = _any_of(
    _returns("training.schedules", LRScheduler), is_class_of(LRScheduler, "torch.optim.lr_scheduler")
)
# The first that fits a key counts.
_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"data", Kind("a function that returns compresskd.data.base.Data", Data, _returns("data", Data))),
    (r"task", Kind("a subclass of compresskd.tasks.Task", Task, is_class_of(Task, "compresskd.tasks"))),
    (
        r"data\.augmentation(\..*)?",
        _own("an augmentation", _has("data.augmentation", "num_draws", "__call__")),
    ),
    (r"(teacher|student)", MODULE),
    (r"(teacher|student)\..*", PART),
    (r"(.*\.)?optimizer", Kind("a subclass of torch.optim.Optimizer", Optimizer, _OPTIMIZER)),
    (r"(.*\.)?scheduler", Kind("a function that returns an LRScheduler of torch", LRScheduler, _SCHEDULER)),
    (r"(.*\.)?objective", _own("the objective", _OBJECTIVE)),
    (r"(.*\.)?objective\.terms\.[^.]*", _own("a loss term", _TERM)),
    (r"(compress|quant|.*\.(compression|quantization))", _own("Compression or Quantization", _PLAN)),
    (r"(rank_schedule|strategy\.stages\.[^.]*\.stages)", _own("a schedule of ranks", _SCHEDULE)),
    (r"strategy\.stages\.[^.]*", _own("a stage", _STAGE)),
    (r"tracker\.[^.]*", _own("a tracker", _has("listeners", "check", "open"))),
    (r"(strategy|kd)\..*", _own("part of a stage", _TERM, _PLAN, _STAGE, _SCHEDULE, _OBJECTIVE)),
    (r".*", _own("nothing")),
)


def kind_of(key: str) -> Kind:
    """What the `_target_` at a dotted key may name."""
    return next(kind for pattern, kind in _KINDS if re.fullmatch(pattern, key))


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


def outside_targets(node: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, path) of every `_target_` in plain values that names code outside of what is shipped."""
    for key, path in leaves(node):
        is_target = key.rpartition(".")[2] == "_target_" and isinstance(path, str) and path != "???"
        if is_target and not is_shipped(path):
            yield key, path
