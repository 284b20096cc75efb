"""What is wrong with an override that does not fit, or with a key that nothing reads, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from compresskd.config.allowed import options_of
from compresskd.config.faults import Fault
from compresskd.config.origin import leaves, origin, references, value_at
from compresskd.config.overrides import typed_value
from compresskd.config.schema import DEFAULTS, GROUPS, MODEL_ROLES
from compresskd.options import close_match, nearest

Plain = Mapping[str, Any]
_NOTHING = object()
# Keys that choose files; `experiment` holds none of the configuration's keys.
_CHOICES = ("experiment", *(group for group in GROUPS if group != "teacher_fit"))
# What is read by its name of groups that are no `_target_` themselves; the recipe judges the keys of `train`.
_READ_BY_NAME = {
    "strategy": ("name", "stages"),
    "kd": ("objective",),
    "tt": ("plan",),
    "measure": ("latency",),
    "teacher_fit": ("epochs", "seed", "optimizer", "scheduler", "train"),
}


def of_choice(p: Override, options: Sequence[str]) -> Fault | None:
    """The fault of a choice among a group's options, or None."""
    value = p.value()
    for choice in value if isinstance(value, list) and value else [value]:
        if p.is_delete() and p.key_or_group != "experiment":
            near = nearest("", options)
            return Fault(p.get_key_element(), f"cannot be left out; write {p.key_or_group}=NAME{near}")
        if (choice is not None or not p.is_delete()) and choice not in options:
            return Fault(
                p.get_key_element(), f"got {typed_value(p) or 'nothing'}{nearest(str(choice), options)}"
            )
    return None


def of_composition(p: Override, error: Exception) -> Fault:
    """The fault of a choice among files that exists, and yet does not compose."""
    plain = f"; write {p.key_or_group}={typed_value(p)}, without the +" if p.is_add() else ""
    return Fault(p.get_key_element(), f"got {typed_value(p)}; {said(error)}{plain}")


def of_value(p: Override, written: Plain) -> Fault | None:
    """The fault of an override that Hydra would take, and that yet says nothing, or takes too much away; or None."""
    key, value, before = p.key_or_group, p.value(), value_at(written, p.key_or_group, _NOTHING)
    if p.is_delete():
        return _of_deletion(p, written)
    if p.is_add() and before not in (_NOTHING, None) and not isinstance(value, dict | list):
        return Fault(p.get_key_element(), f"is there already; write {key}={typed_value(p)}")
    if not isinstance(before, Mapping) or not before:
        return None
    if value == {}:  # options given as a mapping are added to those that are there
        return Fault(key, f"got {{}}, which changes nothing; write '~{key}.NAME' to take an option away")
    plain = not (p.is_add() or p.is_force_add()) and key not in _CHOICES
    if not plain or value is None or isinstance(value, dict) or "${" in typed_value(p):
        return None
    group = key.rpartition(".")[2]
    choose = f"; to choose a file write {group}@{key}={typed_value(p)}" if group in _CHOICES else ""
    return Fault(key, f"got {typed_value(p)}, expected several options: write {key}.OPTION=VALUE{choose}")


def of_error(p: Override, error: Exception, written: Plain) -> Fault:
    """The fault of an override that could not be carried out."""
    key, holder = p.key_or_group, p.key_or_group.rpartition(".")[0]
    elsewhere = origin(written, key, literal=True)
    if elsewhere != key:
        return Fault(key, f"takes its value from another place; write {elsewhere}={typed_value(p)}")
    if p.is_add() or p.is_force_add() or value_at(written, key, _NOTHING) is not _NOTHING:
        return Fault(
            p.get_key_element(), f"got {typed_value(p) or 'nothing'}; {said(error.__cause__ or error)}"
        )
    node = value_at(written, holder) if holder else None
    if isinstance(node, Mapping) and key.rpartition(".")[2] in options_of(node.get("_target_"), holder):
        return Fault(key, f"is an option that has no value yet; write +{key}={typed_value(p)}")
    return Fault(key, f"unknown option{_nearest_key(key, written)}")


def _of_deletion(p: Override, written: Plain) -> Fault | None:
    """The fault of a key that may not be taken away, or None; only what a person has named may be.

    These are stages, terms of a loss, operations, patterns, options of a model of the user's own, and keys that nothing
    reads.
    """
    key = p.key_or_group
    if value_at(written, key, _NOTHING) is _NOTHING:
        return Fault(p.get_key_element(), f"there is nothing to delete{_nearest_key(key, written)}")
    holder = key.rpartition(".")[0]
    node = value_at(written, holder) if holder else written
    named = holder == "strategy.stages" or (_is_called(written, holder.split(".")) and "_target_" not in node)
    own = holder in MODEL_ROLES and not str(node.get("_target_")).startswith("compresskd.")
    if (
        named or own or not _is_read(written, key, references(written))
    ):  # an own constructor says what it needs
        return None
    return Fault(f"~{key}", f"cannot be left out: something reads it; write {key}=VALUE")


def unread(typed: Sequence[Override], written: Plain, before: Plain) -> Iterator[Fault]:
    """A fault for each key, of a file or typed, that nothing would ever read.

    Args:
        written: the composition with every override.
        before: without those that change values; a key that something read then may stay unread now (a loss term
            that was taken away leaves its options behind).
    """
    read, read_before = references(written), references(before)
    for key, _ in leaves(written):
        there = value_at(before, key, _NOTHING) is not _NOTHING
        if _is_read(written, key, read) or (there and _is_read(before, key, read_before)):
            continue
        top = key.partition(".")[0]
        if top not in DEFAULTS:
            yield Fault(key, f"unknown option{nearest(top, [*DEFAULTS, 'experiment'])}")
        else:
            away = "the +" if any(p.is_add() and p.key_or_group == key for p in typed) else "it"
            yield Fault(
                key, f"nothing reads this key; take {away} away, or see --cfg job for the keys there are"
            )


def _is_read(written: Plain, key: str, read: set[str]) -> bool:
    """Whether something reads a key: Python by its name, a `_target_` above as an argument, or a reference."""
    parts = key.split(".")
    top = parts[0]
    if top not in DEFAULTS:
        return False
    if len(parts) == 1 or top == "train" or parts[:2] in (["teacher_fit", "train"], ["strategy", "stages"]):
        return True
    if parts[1].partition("[")[0] in _READ_BY_NAME.get(top, ()):
        return True
    if any(r == key or r.startswith(f"{key}.") or key.startswith((f"{r}.", f"{r}[")) for r in read):
        return True
    return _is_called(written, parts)


def _is_called(written: Plain, parts: Sequence[str]) -> bool:
    """Whether a key is an argument, or part of one, of some `_target_`, which then judges it."""
    nodes = [value_at(written, ".".join(parts[:n])) for n in range(1, len(parts) + 1)]
    return any(isinstance(node, Mapping) and "_target_" in node for node in nodes)


def said(error: BaseException) -> str:
    """What an error of Hydra says, in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    asides = ("full_key:", "object_type=", "reference_type=")
    return " ".join(line for line in lines if line and not line.startswith(asides))


def _nearest_key(key: str, written: Plain) -> str:
    """'; did you mean KEY?' where one is close, or has the same last name."""
    names = [re.sub(r"\[\d+\]", "", k).split(".") for k, _ in leaves(written)]
    known = {".".join(parts[:n]) for parts in names for n in range(1, len(parts) + 1)}
    own = [k for k in (*known, "experiment") if not k.startswith("hydra.") or key.startswith("hydra.")]
    near = close_match(key.replace("/", "."), own)
    alike = [k for k in own if k.rpartition(".")[2] == key.rpartition(".")[2]]
    found = near or min(alike, key=lambda k: k.count("."), default=None)
    return f"; did you mean {found}?" if found else ""
