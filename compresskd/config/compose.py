"""Compose configurations ahead of Hydra's own run, so that every fault is found before a directory is made."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from compresskd.config import diagnosis, keys, overrides
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.schema import conf_dir

_UNCOMPOSABLE = (HydraException, OmegaConfBaseException, YAMLError, ValueError)

_OF_HYDRA = {"dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}", "subdir": "${hydra.job.num}"}
_CHDIR = (
    "came true; a run stays where it was started, so that data.path, teacher.weights and outputs_dir mean the same "
    "in every job; write hydra.job.chdir=false"
)


@dataclass(frozen=True)
class Job:
    """One run to be: a sweep has many.

    Attributes:
        overrides: as typed.
        name: the overrides that tell it from the sweep's other jobs; empty where there is but one.
        config: composed; overrides with faults are left out, so that the rest can be checked too.
        faults: of the overrides.
        sweep: `dir` and `subdir` of the sweep, where the user's own configuration or command line says them.
    """

    overrides: list[str]
    name: str
    config: DictConfig
    faults: list[Fault]
    sweep: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a command line runs: one job, or those of a sweep."""

    jobs: list[Job]
    multirun: bool


def compose_jobs(
    lines: Sequence[str],
    *,
    config_dirs: Sequence[Path] = (),
    config_name: str | None = None,
    multirun: bool = False,
) -> Plan:
    """Every job, composed. A configuration with `hydra.mode: MULTIRUN` is a sweep by itself.

    Args:
        lines: the overrides as typed, without flags.
        config_dirs: searched besides the shipped configuration.
        config_name: of the primary configuration; None takes the shipped one.
        multirun: whether `a=1,2` stands for two jobs.

    Raises:
        ConfigError: for a configuration that does not compose even without the overrides.
    """
    for folder in config_dirs:
        if not folder.is_dir():
            raise ConfigError(
                [Fault("--config-dir", f"came {folder}, which is no folder; write --config-dir=DIR")]
            )
    with _hydra(config_dirs) as loader:
        parsed, faults = overrides.parse(lines, loader)
        composer = _Composer(loader, config_name or "config", parsed)
        sweep = composer.sweep(parsed)
        multirun = multirun or sweep is not None
        if multirun:
            typed_keys = {p.get_key_element() for p in parsed}
            added, more = overrides.parse(
                [f"{k}={v}" for k, v in (sweep or {}).items() if k not in typed_keys], loader
            )
            parsed, faults = [*added, *parsed], [*faults, *more]
            too_many = overrides.size_faults(parsed)
            if too_many:
                raise ConfigError([*faults, *too_many])
        else:
            faults += overrides.sweep_faults(parsed)
            parsed = [p for p in parsed if not p.is_sweep_override()]
        jobs = []
        for typed, name in overrides.jobs(parsed, loader):
            config, found, sweep = composer.compose(typed)
            jobs.append(Job([p.input_line or "" for p in typed], name, config, [*faults, *found], sweep))
    return Plan(jobs, multirun)


@contextmanager
def _hydra(config_dirs: Sequence[Path]) -> Iterator[Any]:
    """Hydra's loader over the folders that its own run will search."""
    path = create_config_search_path(str(conf_dir()))
    for folder in config_dirs:
        path.prepend("command-line", f"file://{folder.resolve()}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2(task_name="compresskd", config_search_path=path)
    try:
        yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()


@functools.cache
def _shipped_sweep() -> dict[str, str]:
    return dict(OmegaConf.load(conf_dir() / "config.yaml").hydra.sweep.items_ex(resolve=False))


def _own_sweep(cfg: DictConfig) -> dict[str, str]:
    """Where the user wants a sweep and its jobs: whatever neither we nor Hydra ship. `dir` is as it will be."""
    shipped, written = _shipped_sweep(), OmegaConf.to_container(cfg.hydra.sweep)
    assert isinstance(written, dict)
    own = {str(k): v for k, v in written.items() if k in shipped and v not in (shipped[k], _OF_HYDRA[str(k)])}
    if "dir" in own:
        with suppress(OmegaConfBaseException):  # what only the job itself can tell stays as it is written
            own["dir"] = str(cfg.hydra.sweep.dir)
    return own


class _Composer:
    """Composes jobs; those that choose the same options share the composition, and differ in values only."""

    def __init__(self, loader: Any, config_name: str, typed: Sequence[Override]):
        self._loader, self._name = loader, config_name
        self._search = [p.input_line or "" for p in typed if p.key_or_group == "hydra.searchpath"]
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, list[str]] = {}

    def sweep(self, typed: Sequence[Override]) -> dict[str, str] | None:
        """What the configuration itself sweeps over, or None where it is to run once."""
        choices, _ = self._choices([p for p in typed if not p.is_sweep_override()])
        hydra = self._chosen(choices)[0].hydra
        if hydra.get("mode") != RunMode.MULTIRUN:
            return None
        return {str(k): str(v) for k, v in (hydra.sweeper.get("params") or {}).items()}

    def compose(self, typed: Sequence[Override]) -> tuple[DictConfig, list[Fault], dict[str, str]]:
        """The configuration with all overrides that fit, a fault for each that does not, and `Job.sweep`."""
        choices, faults = self._choices(typed)
        base, found = self._chosen(choices)
        faults += found
        cfg, applied = copy.deepcopy(base), []
        for p in typed:
            if self._is_choice(p):
                continue
            fault = keys.deletion_fault(p, cfg) if p.is_delete() else diagnosis.of_replaced_mapping(p, cfg)
            if fault:
                faults.append(fault)
                continue
            try:
                ConfigLoaderImpl._apply_overrides_to_config([p], cfg)
                applied.append(p)
            except (HydraException, OmegaConfBaseException) as error:
                cfg = copy.deepcopy(base)  # what failed may have left something half done
                ConfigLoaderImpl._apply_overrides_to_config(applied, cfg)
                faults.append(diagnosis.of_value(p, error, cfg, self._loader))
        if cfg.hydra.job.get("chdir"):
            faults.append(Fault("hydra.job.chdir", _CHDIR))
        sweep = _own_sweep(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
        return cfg, [*faults, *keys.unread_faults(typed, cfg, base)], sweep

    def _options(self, group: str) -> list[str]:
        if group not in self._groups:
            self._groups[group] = (
                self._loader.get_group_options(group, ObjectType.CONFIG, self._name, self._search)
                if self._search
                else self._loader.repository.get_group_options(group, ObjectType.CONFIG)
            )
        return self._groups[group]

    def _is_choice(self, p: Override) -> bool:
        return bool(self._options(p.key_or_group)) and not isinstance(p.value(), dict)

    def _choices(self, typed: Sequence[Override]) -> tuple[list[Override], list[Fault]]:
        """The overrides that choose files which are there, and a fault for each of the others."""
        choices, faults = [], []
        for p in filter(self._is_choice, typed):
            fault = diagnosis.of_choice(p, self._options(p.key_or_group))
            if fault:
                faults.append(fault)
            else:
                choices.append(p)
        return choices, faults

    def _chosen(self, choices: Sequence[Override]) -> tuple[DictConfig, list[Fault]]:
        """The composition of these choices, without those that cannot be composed."""
        try:
            return self._load(choices), []
        except _UNCOMPOSABLE as error:
            first = error
        try:
            self._load([])
        except _UNCOMPOSABLE as error:
            raise ConfigError([Fault("", diagnosis.said(error))]) from first
        valid: list[Override] = []
        faults: list[Fault] = []
        for p in choices:
            try:
                self._load([*valid, p])
                valid.append(p)
            except _UNCOMPOSABLE as error:
                faults.append(diagnosis.of_composition(p, error))
        return self._load(valid), faults

    def _load(self, choices: Sequence[Override]) -> DictConfig:
        lines = tuple(p.input_line or "" for p in choices)
        if lines not in self._composed:
            typed = [*self._search, *lines]
            self._composed[lines] = compose(self._name, overrides=typed, return_hydra_config=True)
        return self._composed[lines]
