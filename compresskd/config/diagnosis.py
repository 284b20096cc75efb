"""What is wrong with an override that does not fit, in words that say what to write instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from compresskd.config.faults import Fault, close_match, nearest
from compresskd.config.keys import FIELDS, is_there, select
from compresskd.config.origin import leaves, origin
from compresskd.config.overrides import typed_value

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
# Keys that choose files; `experiment` holds none of the configuration's keys.
_MAPPINGS = [name for name, field in FIELDS.items() if field.default is dataclasses.MISSING]
_GROUPS = ["experiment", *(name for name in _MAPPINGS if name != "teacher_fit")]


def of_choice(p: Override, options: Sequence[str]) -> Fault | None:
    """The fault of a choice among a group's options, or None."""
    value = p.value()
    for choice in value if isinstance(value, list) and value else [value]:
        if p.is_delete() and p.key_or_group != "experiment":
            return Fault(
                p.get_key_element(), f"cannot be left out; write {p.key_or_group}=NAME{nearest('', options)}"
            )
        if choice is None and p.is_delete():
            continue
        if not isinstance(choice, str) or choice not in options:
            came = typed_value(p) or "nothing"
            return Fault(p.get_key_element(), f"came {came}{nearest(str(choice), options)}")
    return None


def of_composition(p: Override, error: Exception) -> Fault:
    """The fault of a choice among files that exists, and yet does not compose."""
    plain = f"; write {p.key_or_group}={typed_value(p)}, without the +" if p.is_add() else ""
    return Fault(p.get_key_element(), f"came {typed_value(p)}; {said(error)}{plain}")


def of_replaced_mapping(p: Override, cfg: DictConfig) -> Fault | None:
    """The fault of one value in the place of several options, or None; null and references may stand there.

    Options given as a mapping are added to those that are there, so that an empty one would change nothing.
    """
    key, value = p.key_or_group, p.value()
    if value == {} and not p.is_delete() and isinstance(select(cfg, key), DictConfig) and select(cfg, key):
        return Fault(key, f"came {{}}, which changes nothing; write '~{key}.NAME' to take an option away")
    plain = not (p.is_add() or p.is_force_add() or p.is_delete()) and key not in _GROUPS
    if not plain or value is None or isinstance(value, dict) or "${" in typed_value(p):
        return None
    if not isinstance(select(cfg, key), DictConfig):
        return None
    group = key.rpartition(".")[2]
    choose = f"; to choose a file write {group}@{key}={typed_value(p)}" if group in _GROUPS else ""
    return Fault(key, f"came {typed_value(p)}; it holds several options: write {key}.OPTION=VALUE{choose}")


def of_value(p: Override, error: Exception, cfg: DictConfig, loader: Any) -> Fault:
    """The fault of a value that could not be set."""
    key = p.key_or_group
    if p.is_add() or p.is_delete():
        return _of_sign(p, error, cfg, loader)
    elsewhere = origin(cfg, key, literal=True)
    if elsewhere != key:
        return Fault(key, f"takes its value from another place; write {elsewhere}={typed_value(p)}")
    if key in _GROUPS:
        return _no_file(p)
    if not is_there(cfg, key):
        return Fault(key, f"unknown option{_nearest_key(key, cfg, loader)}")
    allowed = f"allowed: {_type_words(key)}" if key in FIELDS else said(error.__cause__ or error)
    return Fault(key, f"came {typed_value(p) or 'nothing'}; {allowed}")


def _of_sign(p: Override, error: Exception, cfg: DictConfig, loader: Any) -> Fault:
    """The fault of an override that begins with a plus or a tilde."""
    key, element = p.key_or_group, p.get_key_element()
    if p.is_delete() and not is_there(cfg, key):
        return Fault(element, f"there is nothing to delete{_nearest_key(key, cfg, loader)}")
    if p.is_add() and is_there(cfg, key):
        return Fault(element, f"is there already; write {key}={typed_value(p)}")
    return Fault(element, said(error))


def _no_file(p: Override) -> Fault:
    choice = f"{p.key_or_group}/{typed_value(p)}.yaml"
    return Fault(p.key_or_group, f"came {typed_value(p)}; there is no file {choice} to choose")


def said(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    kept = [
        line
        for line in lines
        if line and not line.startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return " ".join(kept)


def _type_words(key: str) -> str:
    kind: Any = FIELDS[key].type
    kinds = {"int": [int], "str": [str], "int | None": [int]}.get(str(kind)) or get_args(kind) or [kind]
    null = ["null"] if "None" in str(kind) else []
    words = [*(_WORDS[k] for k in kinds if k in _WORDS), *null]
    return " or ".join(words) or "a mapping of options"


def _nearest_key(key: str, cfg: DictConfig, loader: Any) -> str:
    """The nearest name in the deepest part of the path that is there, else a key of the same last name elsewhere."""
    path = key.replace("/", ".").split(".")
    depth = next(n for n in range(len(path)) if not is_there(cfg, ".".join(path[: n + 1])))
    holder = select(cfg, ".".join(path[:depth])) if depth else cfg
    names = [str(name) for name in holder]
    if depth == 0:
        names += [group for group in loader.list_groups("") if group != "hydra"]
    prefix = "".join(f"{part}." for part in path[:depth])
    near = close_match(path[depth], names)
    if near:
        return f"; did you mean {prefix}{'.'.join([near, *path[depth + 1 :]])}?"
    if depth == 0:
        known = _keys_by_name(cfg)
        elsewhere = close_match(path[-1], known)
        return f"; did you mean {known[elsewhere]}?" if elsewhere else ""
    return f"; allowed: {', '.join(prefix + name for name in names)}" if len(names) <= 24 else ""


def _keys_by_name(cfg: DictConfig) -> dict[str, str]:
    """Last part of each key -> the whole key, the shallowest where several share it."""
    found: dict[str, str] = {}
    for key, _ in sorted(leaves(cfg), key=lambda pair: pair[0].count(".")):
        if not key.startswith("hydra."):
            found.setdefault(key.rpartition(".")[2], key)
    return found
