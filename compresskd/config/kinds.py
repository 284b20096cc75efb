"""What a type hint allows a value of the configuration to be: numbers, strings, lists and mappings of such."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compresskd.config.faults import Fault

_WORDS = {
    int: "whole number",
    float: "number",
    str: "string",
    bool: "true or false",
    type(None): "null",
    list: "list: [a, b]",
    dict: "mapping: {a: b}",
}


def check_kind(key: str, value: Any, hint: Any) -> Iterator[Fault]:
    """Faults of a plain value, and of what is in it, against a type hint; a hint of other types judges nothing."""
    hints = _plain_hints(hint)
    if value is None and hints is None and inspect.isclass(hint) and hint is not object:
        yield Fault(key, f"came null; write a node whose _target_ makes a {hint.__name__}")
        return
    if isinstance(value, Mapping) and "_target_" in value:
        return
    if hints is None:
        made = _made(hint)
        if made and value is not None:
            yield Fault(key, f"came {value!r}; write a node whose _target_ makes a {made}")
        return
    if value == "???":
        yield Fault(key, f"is missing; write a {_names(hints)}")
        return
    fitting = [each for each in hints if _fits(value, _outer(each))]
    if not fitting:
        yield Fault(key, f"came {value!r} ({type(value).__name__}); allowed: {_names(hints)}")
    elif isinstance(value, Mapping | list):
        yield from _check_parts(key, value, typing.get_args(fitting[0]))


def _check_parts(key: str, value: Mapping[str, Any] | list[Any], inner: Sequence[Any]) -> Iterator[Fault]:
    if not inner:
        return
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from check_kind(f"{key}.{name}", part, inner[-1])
        return
    hints = [part for part in inner if part is not Ellipsis]
    for position, part in enumerate(value):
        yield from check_kind(f"{key}[{position}]", part, hints[min(position, len(hints) - 1)])


def _plain_hints(hint: Any) -> list[Any] | None:
    """The plain types among which a hint chooses, or None where it allows what cannot be judged from here."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_plain_hints(part) for part in typing.get_args(hint)]
        return None if None in parts else [kind for part in parts if part for kind in part]
    return [hint] if _outer(hint) is not None else None


def _made(hint: Any) -> str:
    """The name of the one class that only a `_target_` can make among those of a hint; empty where there is none."""
    classes = [each for each in (*typing.get_args(hint), hint) if inspect.isclass(each)]
    made = [
        each for each in classes if dataclasses.is_dataclass(each) or getattr(each, "_is_protocol", False)
    ]
    return made[0].__name__ if made and len(made) == sum(each is not type(None) for each in classes) else ""


def _outer(hint: Any) -> type | None:
    """The kind of value that a hint stands for, whatever is in it."""
    if hint in (int, float, str, bool, type(None)):
        return hint
    origin = typing.get_origin(hint) or hint
    if not inspect.isclass(origin):
        return None
    if origin in (list, tuple, Sequence):
        return list
    return dict if origin in (dict, Mapping) else None


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _names(hints: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(_WORDS[kind] for kind in map(_outer, hints) if kind))
