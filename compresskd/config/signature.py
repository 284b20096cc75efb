"""Check `_target_` nodes against the signature that they call, before anything is called."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from compresskd.config.allowed import resolve_allowed
from compresskd.config.faults import Fault, nearest
from compresskd.config.kinds import check_kind

_SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")


def check_calls(
    node: Any, key: str, *, skip: Sequence[str] = (), trust: Sequence[str] | None = None
) -> Iterator[Fault]:
    """Faults of a plain configuration node and of every `_target_` node below it.

    Args:
        node: nested plain values.
        key: its dotted key.
        skip: keys of the node itself that its target does not take.
        trust: packages besides compresskd whose code may run; None for the user's own command line, where all may.
    """
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name not in _SPECIAL or name == "_args_":
                yield from check_calls(value, f"{key}.{name}", trust=trust)
        if "_target_" in node:
            yield from _check_call(node, key, skip, trust)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from check_calls(value, f"{key}[{position}]", trust=trust)


def _check_call(
    node: Mapping[str, Any], key: str, skip: Sequence[str], trust: Sequence[str] | None
) -> Iterator[Fault]:
    target = node["_target_"]
    if target == "???" or not isinstance(target, str):
        yield Fault(f"{key}._target_", "is missing; write the dotted path of a class or function")
        return
    try:
        function = resolve_allowed(target, key, trust=trust)
    except ValueError as error:
        yield Fault(f"{key}._target_", str(error))
        return
    signature = _signature(function)
    if signature is None:
        return
    given = {k: v for k, v in node.items() if k not in (*_SPECIAL, *skip)}
    hints = _hints(function) | _unpacked(function)
    named = [*_named(signature), *_unpacked(function)]
    takes_any = _any_keyword(signature) and not _unpacked(function)
    for name, value in given.items():
        if name in named:
            yield from check_kind(f"{key}.{name}", value, hints.get(name))
        elif not takes_any:
            yield Fault(f"{key}.{name}", f"unknown option of {target}{nearest(name, named)}", literal=True)
    if not node.get("_partial_") and not node.get("_args_"):
        for name, parameter in _named(signature).items():
            if parameter.default is inspect.Parameter.empty and name not in given:
                yield Fault(f"{key}.{name}", f"is missing; {target} needs it", literal=True)


def _signature(function: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # built in C, says nothing of itself
        return None


def _named(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in signature.parameters.items() if p.kind not in various}


def _any_keyword(signature: inspect.Signature) -> bool:
    return any(p.kind == inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())


def _hints(function: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # a user's annotation that does not resolve is not a fault of the configuration
        return {}


def _unpacked(function: Callable) -> dict[str, Any]:
    """Name and type of the keywords that `**options: Unpack[SomeTypedDict]` stands for."""
    for hint in _hints(function).values():
        if typing.get_origin(hint) is typing.Unpack:
            return typing.get_type_hints(typing.get_args(hint)[0])
    return {}
