"""Interpolations: which key a value was taken from, and which of them lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.budget import share_epochs
from compresskd.config.faults import ConfigError, Fault, close_match

PATHS = ("data.path", "teacher.weights", "student.weights", "outputs_dir")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MOST_HOPS = 20  # a chain of references longer than this is a circle


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as nested plain values, paths made absolute so that it means the same anywhere.

    Raises:
        ConfigError: for every interpolation that leads nowhere.
    """
    faults = list(interpolation_faults(cfg))
    if faults:
        raise ConfigError(faults)
    share_epochs(cfg)
    for key in PATHS:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value:
            OmegaConf.update(cfg, key, str(Path(value).expanduser().absolute()))
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def interpolation_faults(cfg: DictConfig) -> list[Fault]:
    """One fault for each key whose interpolation leads nowhere; what takes its value from there is not repeated."""
    faults: dict[str, Fault] = {}
    for key, node in leaves(cfg):
        if not node._is_interpolation():
            continue
        try:
            node._dereference_node()
        except OmegaConfBaseException as error:
            root = origin(cfg, key)
            written = _node(cfg, root.split("."))
            text = written._value() if written is not None else node._value()
            faults[root] = Fault(root, f"came {text}; {_reason(cfg, root, str(text), error)}")
    return list(faults.values())


def origin(cfg: DictConfig, key: str, *, literal: bool = False) -> str:
    """The key that one has to change to change the value at `key`: references `${other.key}` followed.

    With `literal`, the key itself is to be changed: its own reference is not followed, those above it are. A key
    that is not in the configuration is returned as it is.
    """
    parts = [part.rstrip("]") for part in re.split(r"[.\[]", key) if part]
    for _ in range(_MOST_HOPS):
        followed = _follow(cfg, parts, len(parts) - literal)
        if followed is None:
            return key
        parts = followed
        key = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)[1:]
    return key


def references(cfg: DictConfig) -> set[str]:
    """Every key that an interpolation names."""
    return {
        name for _, node in leaves(cfg) if node._is_interpolation() for name in _names(str(node._value()))
    }


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, node) of everything that holds no further nodes; interpolations are not followed."""
    inner = isinstance(node, DictConfig | ListConfig) and not (
        node._is_none() or node._is_interpolation() or node._is_missing()
    )
    if not inner or not len(node):
        yield prefix, node
        return
    names: Any = node if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        yield from leaves(node._get_node(name), f"{prefix}.{name}" if prefix else str(name))


def _follow(cfg: DictConfig, parts: Sequence[str], most: int) -> list[str] | None:
    """The first reference among the leading `most` parts replaced by where it leads; None where there is none."""
    for depth in range(1, most + 1):
        node = _node(cfg, parts[:depth])
        if node is None:
            return None
        if node._is_interpolation():
            names = _names(str(node._value()))
            if len(names) != 1 or _node(cfg, names[0].split(".")) is None:
                return None
            return [*names[0].split("."), *parts[depth:]]
    return None


def _node(cfg: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(cfg, DictConfig | ListConfig) or cfg._is_none() or cfg._is_interpolation():
            return None
        name: Any = int(part) if isinstance(cfg, ListConfig) and part.isdigit() else part
        try:
            cfg = cfg._get_node(name)
        except (OmegaConfBaseException, IndexError):
            return None
    return cfg


def _names(text: str) -> list[str]:
    return _REFERENCE.findall(text)


def _reason(cfg: DictConfig, root: str, text: str, error: Exception) -> str:
    for name in _names(text):
        if _node(cfg, name.split(".")) is None:
            near = close_match(name, [key for key, _ in leaves(cfg) if key != root])
            return f"there is no key {name}" + (f"; did you mean {near}?" if near else "")
    return str(error).strip().partition("\n")[0]
