"""Interpolations: which key a value was taken from, and which of them lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.faults import Fault
from compresskd.options import close_match

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MOST_HOPS = 20  # a chain of references longer than this is a circle
_NOTHING = object()


def as_written(cfg: DictConfig) -> dict[str, Any]:
    """A composition as plain values, its references `${other.key}` not followed."""
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    return written


def interpolation_faults(cfg: DictConfig) -> list[Fault]:
    """One fault for each key whose interpolation leads nowhere; what takes its value from there is not repeated."""
    written, faults = as_written(cfg), {}
    for key, text in leaves(written):
        if not isinstance(text, str) or "${" not in text:
            continue
        try:
            OmegaConf.select(cfg, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            root = origin(written, key)
            came = value_at(written, root, text)
            faults[root] = Fault(root, f"got {came}; {_reason(written, root, str(came), error)}")
    return list(faults.values())


def origin(written: Mapping[str, Any], key: str, *, literal: bool = False) -> str:
    """The key that one has to change to change the value at `key`: references `${other.key}` followed.

    With `literal`, the key itself is to be changed: its own reference is not followed, those above it are. A key
    that is not in the configuration is returned as it is.
    """
    parts = _parts(key)
    for _ in range(_MOST_HOPS):
        followed = _follow(written, parts, len(parts) - literal)
        if followed is None:
            return key
        parts = followed
        key = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)[1:]
    return key


def references(written: Mapping[str, Any]) -> set[str]:
    """Every key that an interpolation names."""
    return {name for _, value in leaves(written) for name in _names(value)}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that holds no further values."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(node, list) and node:
        for position, value in enumerate(node):
            yield from leaves(value, f"{prefix}[{position}]")
    else:
        yield prefix, node


def value_at(written: Any, key: str, default: Any = None) -> Any:
    """The value at a dotted key as it is written."""
    for part in _parts(key):
        if isinstance(written, list) and part.isdigit() and int(part) < len(written):
            written = written[int(part)]
        elif isinstance(written, Mapping) and part in written:
            written = written[part]
        else:
            return default
    return written


def _parts(key: str) -> list[str]:
    return [part.rstrip("]") for part in re.split(r"[.\[]", key) if part]


def _follow(written: Mapping[str, Any], parts: Sequence[str], most: int) -> list[str] | None:
    """The first reference among the leading `most` parts replaced by where it leads; None where there is none."""
    for depth in range(1, most + 1):
        names = _names(value_at(written, ".".join(parts[:depth])))
        if names:
            alone = len(names) == 1 and value_at(written, names[0], _NOTHING) is not _NOTHING
            return [*names[0].split("."), *parts[depth:]] if alone else None
    return None


def _names(value: Any) -> list[str]:
    return _REFERENCE.findall(value) if isinstance(value, str) else []


def _reason(written: Mapping[str, Any], root: str, text: str, error: Exception) -> str:
    for name in _names(text):
        if value_at(written, name, _NOTHING) is _NOTHING:
            near = close_match(name, [key for key, _ in leaves(written) if key != root])
            return f"there is no key {name}" + (f"; did you mean {near}?" if near else "")
    return str(error).strip().partition("\n")[0]
