"""What is wrong with an override that does not fit, in words that say what to write instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.faults import Fault, close_match, nearest
from compresskd.config.origin import leaves, origin, references
from compresskd.config.overrides import typed_value
from compresskd.config.schema import Config

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# Keys that choose files; `experiment` holds none of the configuration's keys.
_MAPPINGS = [name for name, field in _FIELDS.items() if field.default is dataclasses.MISSING]
_GROUPS = ["experiment", *(name for name in _MAPPINGS if name != "teacher_fit")]


def of_choice(p: Override, options: Sequence[str]) -> Fault | None:
    """The fault of a choice among a group's options, or None."""
    value = p.value()
    for choice in value if isinstance(value, list) else [value]:
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
    """The fault of one value in the place of several options, or None; null and references may stand there."""
    key, value = p.key_or_group, p.value()
    plain = not (p.is_add() or p.is_force_add() or p.is_delete()) and key not in _GROUPS
    if not plain or value is None or isinstance(value, dict) or "${" in typed_value(p):
        return None
    if not isinstance(_select(cfg, key), DictConfig):
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
    if not _is_there(cfg, key):
        return Fault(key, f"unknown option{_nearest_key(key, cfg, loader)}")
    allowed = f"allowed: {_type_words(key)}" if key in _FIELDS else said(error.__cause__ or error)
    return Fault(key, f"came {typed_value(p) or 'nothing'}; {allowed}")


def _of_sign(p: Override, error: Exception, cfg: DictConfig, loader: Any) -> Fault:
    """The fault of an override that begins with a plus or a tilde."""
    key, element = p.key_or_group, p.get_key_element()
    if p.is_delete() and not _is_there(cfg, key):
        return Fault(element, f"there is nothing to delete{_nearest_key(key, cfg, loader)}")
    if p.is_add() and _is_there(cfg, key):
        return Fault(element, f"is there already; write {key}={typed_value(p)}")
    return Fault(element, said(error))


def of_additions(typed: Sequence[Override], cfg: DictConfig) -> Iterator[Fault]:
    """A fault for each key added with a plus that nothing would ever read."""
    added = [p for p in typed if p.is_add() and not p.is_hydra_override() and _is_there(cfg, p.key_or_group)]
    if not added:
        return
    read = references(cfg)
    for p in added:
        key = p.key_or_group
        top, *below = key.split(".")
        if top == "experiment":
            yield _no_file(p)
        elif top not in _FIELDS:
            yield Fault(key, f"unknown option{nearest(top, [*_FIELDS, 'experiment'])}")
        elif below and not (_is_called(cfg, key) or any(r == key or r.startswith(f"{key}.") for r in read)):
            yield Fault(
                key, "nothing reads this key; take the + away, or see --cfg job for the keys there are"
            )


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


def _is_there(cfg: DictConfig, key: str) -> bool:
    *path, last = key.split(".")
    holder = _select(cfg, ".".join(path)) if path else cfg
    return isinstance(holder, DictConfig) and last in [str(name) for name in holder]


def _select(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # an interpolation on the way leads nowhere, which is another fault
        return None


def _is_called(cfg: DictConfig, key: str) -> bool:
    """Whether the key is an argument, or part of one, of some `_target_`, which then judges it; `train` is one too."""
    parts = key.split(".")
    if parts[0] == "train":
        return True
    nodes = [_select(cfg, ".".join(parts[:n])) for n in range(1, len(parts) + 1)]
    return any(isinstance(node, DictConfig) and "_target_" in node for node in nodes)


def _type_words(key: str) -> str:
    kind: Any = _FIELDS[key].type
    kinds = {"int": [int], "str": [str], "int | None": [int]}.get(str(kind)) or get_args(kind) or [kind]
    null = ["null"] if "None" in str(kind) else []
    words = [*(_WORDS[k] for k in kinds if k in _WORDS), *null]
    return " or ".join(words) or "a mapping of options"


def _nearest_key(key: str, cfg: DictConfig, loader: Any) -> str:
    """The nearest name in the deepest part of the path that is there, else a key of the same last name elsewhere."""
    path = key.replace("/", ".").split(".")
    depth = next(n for n in range(len(path)) if not _is_there(cfg, ".".join(path[: n + 1])))
    holder = _select(cfg, ".".join(path[:depth])) if depth else cfg
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
