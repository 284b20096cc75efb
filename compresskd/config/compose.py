"""Compose configurations ahead of Hydra's own run, so that every fault is found before a directory is made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.faults import ConfigError, Fault, nearest
from compresskd.config.schema import conf_dir

_NAME = "config"


def compose_jobs(
    overrides: Sequence[str], *, config_dirs: Sequence[Path] = (), multirun: bool = False
) -> list[tuple[list[str], DictConfig]]:
    """Every job's overrides and composed configuration.

    Args:
        overrides: as typed, without flags.
        config_dirs: searched besides the shipped configuration.
        multirun: whether `a=1,2` stands for two jobs.

    Raises:
        ConfigError: with all faults of the overrides and group choices.
    """
    parsed = _parse(overrides)
    faults = [
        Fault(
            p.key_or_group,
            f"came {(p.input_line or '').partition('=')[2]}, a sweep; write -m to run one job for each",
        )
        for p in parsed
        if p.is_sweep_override() and not multirun
    ]
    if faults:
        raise ConfigError(faults)
    search = (
        [f"hydra.searchpath=[{','.join(f'file://{d.resolve()}' for d in config_dirs)}]"]
        if config_dirs
        else []
    )
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        jobs, faults = [], []
        for job in _expand(parsed):
            try:
                jobs.append((job, compose(_NAME, overrides=[*job, *search])))
            except (HydraException, OmegaConfBaseException) as error:
                faults += _diagnose(job, search) or [Fault("", _first_line(error))]
        if faults:
            raise ConfigError(faults)
    return jobs


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser, parsed, faults = OverridesParser.create(), [], []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:
            faults.append(
                Fault(line, f"is no override ({_first_line(error)}); write key=value, quoted as in '{line}'")
            )
    if faults:
        raise ConfigError(faults)
    return parsed


def _expand(parsed: Sequence[Override]) -> Iterator[list[str]]:
    choices = []
    for p in parsed:
        if p.is_sweep_override():
            key = p.get_key_element()
            choices.append([f"{key}={value}" for value in p.sweep_string_iterator()])
        else:
            choices.append([p.input_line or ""])
    for combination in itertools.product(*choices):
        yield list(combination)


def _diagnose(job: Sequence[str], search: list[str]) -> list[Fault]:
    """Try the overrides one by one on top of the valid ones, to name each that does not fit."""
    valid: list[str] = []
    faults: list[Fault] = []
    parsed = OverridesParser.create().parse_overrides(list(job))
    loader = GlobalHydra.instance().config_loader()
    for p in sorted(parsed, key=lambda p: not loader.get_group_options(p.key_or_group)):
        try:
            compose(_NAME, overrides=[*valid, p.input_line or "", *search])
            valid.append(p.input_line or "")
        except (HydraException, OmegaConfBaseException) as error:
            faults.append(_fault_of(p, error, valid + search))
    return faults


def _fault_of(p: Override, error: Exception, valid: list[str]) -> Fault:
    key, value = p.key_or_group, p.value()
    options = GlobalHydra.instance().config_loader().get_group_options(key)
    if options and isinstance(value, str) and value not in options:
        return Fault(key, f"came {value}{nearest(value, options)}")
    if p.is_add() or p.is_delete() or p.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return Fault(p.input_line or key, _first_line(error))
    composed = compose(_NAME, overrides=valid)
    if OmegaConf.select(composed, key, default=_MISSING, throw_on_missing=False) is _MISSING:
        groups = [g for g in GlobalHydra.instance().config_loader().list_groups("") if g != "hydra"]
        near = _nearest_key(key, [*_keys(composed), *groups])
        return Fault(key, f"unknown option{near}")
    cause = error.__cause__ or error
    return Fault(key, f"came {value!r}; {_first_line(cause)}")


_MISSING: Any = object()


def _nearest_key(key: str, keys: Sequence[str]) -> str:
    """The nearest key by its whole path, or else by its last part."""
    near = nearest(key, keys)
    if near.startswith("; did"):
        return near
    last = {k.rpartition(".")[2]: k for k in reversed(keys)}
    near = nearest(key.rpartition(".")[2], last)
    return f"; did you mean {last[near[15:-1]]}?" if near.startswith("; did") else ""


def _keys(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration, interpolations not followed."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation() or node._is_missing():
        return []
    keys = []
    for name in node:
        path = f"{prefix}{name}"
        keys.append(path)
        child = node._get_node(name)
        keys += _keys(child, f"{path}.")
    return keys


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
