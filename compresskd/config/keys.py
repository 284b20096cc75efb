"""Which keys something reads, and which of them may be taken away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.faults import Fault, nearest
from compresskd.config.origin import leaves, references
from compresskd.config.schema import MODEL_ROLES, Config

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# What is read by its name of groups that are no `_target_` themselves; the recipe judges the keys of `train`.
_READ_BY_NAME = {
    "strategy": ("name", "stages"),
    "kd": ("objective",),
    "tt": ("plan",),
    "teacher_fit": ("epochs", "seed", "optimizer", "scheduler", "train"),
}


def unread_faults(typed: Sequence[Override], cfg: DictConfig, before: DictConfig) -> Iterator[Fault]:
    """A fault for each key, of a file or typed, that nothing would ever read.

    Args:
        cfg: the composition with every override.
        before: without those that change values; a key that something read then may stay unread now (a loss term
            that was taken away leaves its options behind).
    """
    read, read_before = references(cfg), references(before)
    for key, _ in leaves(cfg):
        if is_read(cfg, key, read) or (is_there(before, key) and is_read(before, key, read_before)):
            continue
        top = key.partition(".")[0]
        if top not in FIELDS:
            yield Fault(key, f"unknown option{nearest(top, [*FIELDS, 'experiment'])}")
        elif any(p.is_add() and p.key_or_group == key for p in typed):
            yield Fault(
                key, "nothing reads this key; take the + away, or see --cfg job for the keys there are"
            )
        else:
            yield Fault(key, "nothing reads this key; take it away, or see --cfg job for the keys there are")


def is_read(cfg: DictConfig, key: str, read: set[str]) -> bool:
    """Whether something reads a key: Python by its name, a `_target_` above as an argument, or a reference."""
    parts = key.split(".")
    top = parts[0]
    if top not in FIELDS:
        return False
    if len(parts) == 1 or top == "train" or parts[:2] in (["teacher_fit", "train"], ["strategy", "stages"]):
        return True
    if parts[1].partition("[")[0] in _READ_BY_NAME.get(top, ()):
        return True
    if any(r == key or r.startswith(f"{key}.") or key.startswith((f"{r}.", f"{r}[")) for r in read):
        return True
    return _is_called(cfg, parts)


def deletion_fault(p: Override, cfg: DictConfig) -> Fault | None:
    """The fault of a key that may not be taken away, or None; only what a person has named may be.

    These are stages, terms of a loss, operations, patterns, options of a model of the user's own, and keys that nothing
    reads.
    """
    key = p.key_or_group
    if not is_there(cfg, key):
        return None
    holder, _, _ = key.rpartition(".")
    node = select(cfg, holder) if holder else cfg
    called = _is_called(cfg, holder.split(".")) if holder else False
    named = holder == "strategy.stages" or (called and not _is_call(node))
    own = holder in MODEL_ROLES and not _is_shipped(node)  # whose constructor says what it needs
    if named or own or not is_read(cfg, key, references(cfg)):
        return None
    return Fault(f"~{key}", f"cannot be left out: something reads it; write {key}=VALUE")


def _is_shipped(node: Any) -> bool:
    target = node._get_node("_target_") if isinstance(node, DictConfig) else None
    return target is not None and str(target._value()).startswith("compresskd.")


def is_there(cfg: DictConfig, key: str) -> bool:
    """Whether a dotted key is in a configuration, with whatever value."""
    *path, last = key.split(".")
    holder = select(cfg, ".".join(path)) if path else cfg
    return isinstance(holder, DictConfig) and last in [str(name) for name in holder]


def select(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # an interpolation on the way leads nowhere, which is another fault
        return None


def _is_called(cfg: DictConfig, parts: Sequence[str]) -> bool:
    """Whether a key is an argument, or part of one, of some `_target_`, which then judges it."""
    nodes = [select(cfg, ".".join(parts[:n])) for n in range(1, len(parts) + 1)]
    return any(map(_is_call, nodes))


def _is_call(node: Any) -> bool:
    return isinstance(node, DictConfig) and "_target_" in node.keys()  # noqa: SIM118 - ??? is not "in" its mapping
