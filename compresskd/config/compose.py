"""Compose configurations ahead of Hydra's own run, so that every fault is found before a directory is made."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from compresskd.config import explain, overrides
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import as_written, leaves, value_at
from compresskd.config.renamed import renamed_faults
from compresskd.config.schema import DEFAULTS, conf_dir

_UNCOMPOSABLE = (HydraException, OmegaConfBaseException, YAMLError, ValueError)

_OF_HYDRA = {"dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}", "subdir": "${hydra.job.num}"}
_CHDIR = (
    "got true, expected false: a run stays where it was started, so that data.path, teacher.weights and outputs_dir "
    "mean the same in every job"
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
            raise ConfigError([Fault("--config-dir", f"got {folder}, expected a folder")])
    with _searching(config_dirs), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed, faults = overrides.parse(lines, loader)
        composer = _Composer(loader, config_name or "config", parsed)
        sweep = composer.sweep(parsed)
        multirun = multirun or sweep is not None
        if multirun:
            typed_keys = {p.get_key_element() for p in parsed}
            own = [f"{key}={value}" for key, value in (sweep or {}).items() if key not in typed_keys]
            added, more = overrides.parse(own, loader)
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


class _Searched(SearchPathPlugin):
    """The folders of --config-dir, at the place that Hydra's own run gives them."""

    folders: ClassVar[Sequence[Path]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append("command-line", f"file://{folder.resolve()}")


@contextmanager
def _searching(folders: Sequence[Path]) -> Iterator[None]:
    Plugins.instance().register(_Searched)
    GlobalHydra.instance().clear()
    _Searched.folders = folders
    try:
        yield
    finally:
        _Searched.folders = ()
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
        self._options: dict[str, list[str]] = {}

    def sweep(self, typed: Sequence[Override]) -> dict[str, str] | None:
        """What the configuration itself sweeps over, or None where it is to run once."""
        hydra = self._base([p for p in typed if not p.is_sweep_override()])[0].hydra
        if hydra.get("mode") != RunMode.MULTIRUN:
            return None
        return {str(k): str(v) for k, v in (hydra.sweeper.get("params") or {}).items()}

    def compose(self, typed: Sequence[Override]) -> tuple[DictConfig, list[Fault], dict[str, str]]:
        """The configuration with all overrides that fit, a fault for each that does not, and `Job.sweep`."""
        base, faults = self._base(typed)
        cfg, applied = copy.deepcopy(base), []
        for p in typed:
            if self._is_choice(p):
                continue
            written = as_written(cfg)
            fault = next(renamed_faults([(p.key_or_group, p.value())]), None) or explain.of_value(p, written)
            try:
                if fault is None:
                    _apply(p, cfg)
                    applied.append(p)
            except (*_UNCOMPOSABLE, TypeError, AttributeError, KeyError) as error:
                fault = explain.of_error(p, error, written)
                cfg = copy.deepcopy(base)  # what failed may have left something half done
                for each in applied:
                    _apply(each, cfg)
            faults += [fault] if fault else []
        if cfg.hydra.job.get("chdir"):
            faults.append(Fault("hydra.job.chdir", _CHDIR))
        sweep = _own_sweep(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
        written = as_written(cfg)
        faults += renamed_faults(leaves(written))
        return cfg, [*faults, *explain.unread(typed, written, as_written(base))], sweep

    def _is_choice(self, p: Override) -> bool:
        return bool(self._choices_of(p.key_or_group)) and not isinstance(p.value(), dict)

    def _choices_of(self, group: str) -> list[str]:
        if "." in group or DEFAULTS.get(group, {}) != {}:
            return []
        if group not in self._options:
            self._options[group] = self._loader.get_group_options(
                group, config_name=self._name, overrides=self._search
            )
        return self._options[group]

    def _base(self, typed: Sequence[Override]) -> tuple[DictConfig, list[Fault]]:
        """The composition of the choices among files, without those that cannot be made; a fault for each of these."""
        choices, faults = [], []
        for p in filter(self._is_choice, typed):
            fault = explain.of_choice(p, self._choices_of(p.key_or_group))
            (faults if fault else choices).append(fault or p)
        try:
            return self._load(choices), faults
        except _UNCOMPOSABLE as error:
            first = error
        valid: list[Override] = []
        for p in [None, *choices]:
            try:
                self._load([*valid, *([p] if p else [])])
                valid += [p] if p else []
            except _UNCOMPOSABLE as error:
                if p is None:
                    raise ConfigError([Fault("", explain.said(error))]) from first
                faults.append(explain.of_composition(p, error))
        return self._load(valid), faults

    def _load(self, choices: Sequence[Override]) -> DictConfig:
        lines = tuple(p.input_line or "" for p in choices)
        if lines not in self._composed:
            typed = [*self._search, *lines]
            self._composed[lines] = compose(self._name, overrides=typed, return_hydra_config=True)
        return self._composed[lines]


def _apply(p: Override, cfg: DictConfig) -> None:
    """Change a composition as Hydra would by an override that chooses no file."""
    key = p.key_or_group
    if not p.is_delete():
        OmegaConf.update(cfg, key, p.value(), merge=True, force_add=p.is_add() or p.is_force_add())
        return
    holder, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(cfg, holder) if holder else cfg
    if p.value() not in (None, value_at(as_written(cfg), key)):
        raise ValueError(f"got {p.value()}, but the value is {value_at(as_written(cfg), key)}")
    with open_dict(node):
        del node[name]
