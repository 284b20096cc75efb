"""Values of the top level, and names that become files: what is judged before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from compresskd.config.faults import Fault
from compresskd.config.schema import MODEL_ROLES
from compresskd.training.precision import check_precision
from compresskd.tt.execution.policy import SOURCES

_LEAST, _MOST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
LARGEST_SEED = 2**63 - 1
_NAME = re.compile(r"\w[\w.-]*")
_LONGEST_NAME = 80
# Names of other arrays in predictions.npz, beside one for each stage.
_TAKEN = ("teacher", "targets")


def value_faults(config: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults of the scalars, of the teacher's training and of the names of strategy and stages."""
    for key, least in (("rank", 1), ("epochs", 0)):
        if config[key] < least:
            yield Fault(key, f"came {config[key]}; allowed: {least} or more")
    if config["tt"]["plan"] not in SOURCES:
        yield Fault("tt.plan", f"came {config['tt']['plan']!r}; allowed: {', '.join(SOURCES)}")
    yield from _seed("seed", config["seed"])
    yield from _teacher_fit(config["teacher_fit"])
    yield from _strategy(config["strategy"])
    for role in MODEL_ROLES:
        weights = config[role].get("weights")
        if weights is not None and not isinstance(weights, str):
            yield Fault(f"{role}.weights", f"came {weights!r}; allowed: the path of a file, or null")
    for group, node in config.items():
        yield from _numbers(node, group)


def _numbers(node: Any, key: str) -> Iterator[Fault]:
    """A fault for each number that cannot be computed with, or be written into a record."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _numbers(value, f"{key}.{name}")
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _numbers(value, f"{key}[{position}]")
    elif isinstance(node, float) and not math.isfinite(node):
        yield Fault(key, f"came {node}; allowed: finite numbers")
    elif isinstance(node, float) and node and not _LEAST <= abs(node) <= _MOST:
        yield Fault(
            key, f"came {node:g}; allowed: 0, or {_LEAST:.1e} to {_MOST:.1e} in size, which float32 holds"
        )
    elif isinstance(node, int) and abs(node) > LARGEST_SEED and key not in ("seed", "teacher_fit.seed"):
        yield Fault(
            key, f"came a number of {len(f'{node:x}') * 4} bits; allowed: up to {LARGEST_SEED} in size"
        )


def device_of(name: str, precision: str) -> torch.device:
    """The device that `name` stands for. Raises ValueError where this machine does not have it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (index.isdigit() or name == kind):
        raise ValueError(f"device: came {name}; allowed: auto, cpu, cuda, cuda:N, mps")
    num_there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if int(index or 0) >= num_there[kind]:
        here = ", ".join(["auto", *(_range(k, count) for k, count in num_there.items() if count)])
        raise ValueError(f"device: came {name}, which this machine does not have; here: {here}")
    device = torch.device(name)
    if precision in ("bf16", "fp16"):  # unknown ones are named by the recipe
        check_precision(precision, device)
    return device


def _range(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}"


def _seed(key: str, value: Any) -> Iterator[Fault]:
    if not _whole(value, 0) or value > LARGEST_SEED:
        yield Fault(key, f"came {value!r}; allowed: 0 to {LARGEST_SEED}")


def _teacher_fit(node: Mapping[str, Any]) -> Iterator[Fault]:
    if not _whole(node.get("epochs"), 0):
        yield Fault("teacher_fit.epochs", f"came {node.get('epochs')!r}; allowed: 0 or more")
    yield from _seed("teacher_fit.seed", node.get("seed"))


def _strategy(node: Mapping[str, Any]) -> Iterator[Fault]:
    name, stages = node.get("name"), node.get("stages")
    if not isinstance(name, str) or not _is_name(name):
        allowed = f"letters, digits and _ . -, at most {_LONGEST_NAME} (it names folders)"
        yield Fault("strategy.name", f"came {name!r}; allowed: {allowed}")
    if not isinstance(stages, Mapping):
        yield Fault(
            "strategy.stages", f"came {stages!r}; write the stages by name: {{distill: {{...}}, ...}}"
        )
        return
    for stage, options in stages.items():
        key = f"strategy.stages.{stage}"
        if not isinstance(options, Mapping):
            came = "null" if options is None else repr(options)
            yield Fault(key, f"came {came}; write '~{key}' to leave it out, or {{_target_: ...}}")
        if not _is_name(str(stage)):
            allowed = (
                f"the name of a stage is that of a folder: letters, digits and _ . -, at most {_LONGEST_NAME}"
            )
            yield Fault(key, allowed, literal=True)
        elif stage in _TAKEN:
            taken = f"{' and '.join(_TAKEN)} are no names for stages: predictions.npz has them already"
            yield Fault(key, taken, literal=True)


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and len(text) <= _LONGEST_NAME


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
