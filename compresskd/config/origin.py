"""Interpolations: which key a value was taken from, and which of them lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.faults import Fault, said

NOTHING = object()
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def as_written(cfg: DictConfig) -> dict[str, Any]:
    """A composition as plain values, its references `${other.key}` not followed."""
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    return written


def interpolation_faults(cfg: DictConfig) -> list[Fault]:
    """One fault for each key whose interpolation leads nowhere; what takes its value from there is not repeated."""
    written, faults = as_written(cfg), {}
    for key, text in leaves(written):
        try:
            if isinstance(text, str) and "${" in text:
                OmegaConf.select(cfg, key, throw_on_missing=True)
        except OmegaConfBaseException as error:
            root = origin(written, key)
            faults[root] = Fault(root, f"got {value_at(written, root, text)}; {said(error)}")
    return list(faults.values())


def origin(written: Mapping[str, Any], key: str, *, literal: bool = False, hops: int = 20) -> str:
    """The key that one has to change to change the value at `key`: references `${other.key}` followed.

    With `literal`, the key itself is to be changed: its own reference is not followed, those above it are. A key
    that is not in the configuration is returned as it is; more than `hops` references are a circle.
    """
    parts = _parts(key)
    for depth in range(1, len(parts) + 1 - literal):
        names = _names(value_at(written, ".".join(parts[:depth])))
        if names and (len(names) > 1 or not hops or value_at(written, names[0]) is NOTHING):
            return key  # of two keys neither is the origin
        if names:
            followed = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join([*names, *parts[depth:]]))
            return origin(written, followed, literal=literal, hops=hops - 1)
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


def value_at(written: Any, key: str, default: Any = NOTHING) -> Any:
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


def _names(value: Any) -> list[str]:
    return _REFERENCE.findall(value) if isinstance(value, str) else []
