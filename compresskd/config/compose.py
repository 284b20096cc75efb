"""Compose configurations ahead of Hydra's own run, so that every fault is found before a directory is made."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from compresskd.config import overrides, schema
from compresskd.config.faults import ConfigError, Fault, said
from compresskd.config.origin import as_written, leaves, references
from compresskd.run.renamed import VALUES, instead_of

Load = Callable[[Sequence[Override]], DictConfig]
_UNCOMPOSABLE = (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError)
_UNFIT = (*_UNCOMPOSABLE, AttributeError, KeyError)
_SWEEP_OF_HYDRA = {"dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}", "subdir": "${hydra.job.num}"}
_shipped: dict[tuple[str, ...], DictConfig] = {}  # compositions of what is shipped, by name and choices


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
    """What a command line runs: one job, or those of a sweep.

    Attributes:
        jobs: those that are checked before the first one runs: all, where there are not very many.
        lines: the overrides of every job.
        basic: whether no sweeper was chosen, so that Hydra's own would run exactly these.
    """

    jobs: list[Job]
    multirun: bool
    lines: list[list[str]]
    basic: bool


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
    schema.register(*config_dirs)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(schema.conf_dir()), version_base="1.3"):
        parsed, faults = overrides.parse(lines)
        searched = [p for p in parsed if p.key_or_group == "hydra.searchpath" and isinstance(p.value(), list)]
        for p in searched:
            folders = [str(entry).removeprefix("file://") for entry in p.value()]  # pyright: ignore
            schema.offer_models("hydra.searchpath", [Path(f) for f in folders if not f.startswith("pkg://")])
        kept = {} if config_dirs or searched else _shipped
        load = functools.partial(_load, config_name or "config", kept)
        single = [p for p in parsed if not p.is_sweep_override()]
        hydra = _base(load, single)[0].hydra
        if hydra.get("mode") == RunMode.MULTIRUN:
            typed = {p.get_key_element() for p in parsed}
            params = (hydra.sweeper.get("params") or {}).items()
            own, more = overrides.parse([f"{key}={value}" for key, value in params if key not in typed])
            multirun, parsed, faults = True, [*own, *parsed], [*faults, *more]
        basic = hydra.sweeper._target_.endswith("BasicSweeper")
        faults = [*faults, *(overrides.intervals(parsed) if multirun and basic else [])]
        combined, more = (
            overrides.combinations(parsed) if multirun else ([(single, "")], overrides.swept(parsed))
        )
        if not combined:
            raise ConfigError([*faults, *more])
        checked = [combined[position] for position in overrides.checked_first(combined)]
        jobs = [_job(load, typed, name, [*faults, *more]) for typed, name in checked]
        of_jobs = [[p.input_line or "" for p in typed] for typed, _ in combined]
        return Plan(jobs, multirun, of_jobs, basic)


def _job(load: Load, typed: Sequence[Override], name: str, faults: Sequence[Fault]) -> Job:
    """The job with all overrides that fit, and a fault for each that does not."""
    base, found = _base(load, typed)
    cfg, applied = copy.deepcopy(base), []
    for p in typed:
        try:
            if not overrides.is_choice(p):
                _apply(p, cfg)
                applied.append(p)
        except _UNFIT as error:
            cfg = copy.deepcopy(base)  # what failed may have left something half done
            for each in applied:
                _apply(each, cfg)
            found.append(overrides.fault_of_value(p, error, as_written(cfg)))
    if cfg.hydra.job.get("chdir"):
        text = "got true, expected false: a run stays where it was started, so that paths mean the same in every job"
        found.append(Fault("hydra.job.chdir", text))
    said = {p.key_or_group.removeprefix("hydra.sweep.") for p in typed}
    sweep = {
        k: v
        for k, v in as_written(cfg.hydra.sweep).items()
        if k in said or v != _SWEEP_OF_HYDRA.get(k, v)  # typed, it may be what Hydra has by itself
    }
    if "dir" in sweep:
        with suppress(OmegaConfBaseException):  # what only the job itself can tell stays as it is written
            sweep["dir"] = str(cfg.hydra.sweep.dir)
    with open_dict(cfg):
        cfg.pop("hydra")
    found += _of_keys(as_written(cfg), as_written(base))
    return Job([p.input_line or "" for p in typed], name, cfg, [*faults, *found], sweep)


def _base(load: Load, typed: Sequence[Override]) -> tuple[DictConfig, list[Fault]]:
    """The composition of the choices among files, without those that cannot be made; a fault for each of these."""
    choices = [p for p in typed if overrides.is_choice(p)]
    with suppress(*_UNCOMPOSABLE):
        return load(choices), []
    valid: list[Override] = []
    faults = []
    try:
        load(valid)
    except _UNCOMPOSABLE as error:
        raise ConfigError([Fault("", said(error))]) from error
    for p in choices:
        try:
            load([*valid, p])
            valid.append(p)
        except _UNCOMPOSABLE as error:
            faults.append(overrides.fault_of_choice(p, error))
    return load(valid), faults


def _load(name: str, kept: dict[tuple[str, ...], DictConfig], choices: Sequence[Override]) -> DictConfig:
    lines = [p.input_line or "" for p in choices]
    if (name, *lines) not in kept:
        kept[name, *lines] = compose(name, overrides=lines, return_hydra_config=True)
    return kept[name, *lines]


def _apply(p: Override, cfg: DictConfig) -> None:
    """Change a composition as Hydra would by an override that chooses no file."""
    key, value = p.key_or_group, p.value()
    holder, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(cfg, holder) if holder else cfg
    before = dict(node.items_ex(resolve=False)).get(name) if OmegaConf.is_dict(node) else None
    if p.is_delete():
        if value not in (None, before):
            raise ValueError(f"the value is {before}")
        with open_dict(node):
            del node[name]
        return
    if p.is_add() and before not in (None, "???") and not isinstance(value, dict | list):
        raise ValueError(f"is there already; write {key}={overrides.typed_value(p)}")
    if value == {} and OmegaConf.is_dict(before) and before:
        raise ValueError(f"changes nothing; write '~{key}.NAME' to take an option away")
    OmegaConf.update(cfg, key, value, merge=True, force_add=p.is_add() or p.is_force_add())


def _of_keys(written: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[Fault]:
    """A fault for each key and value of an earlier version, and for each of `kd` and `strategy` that nothing reads.

    Args:
        before: the composition without overrides; what a term of a loss read that was taken away may stay.
    """
    for key, value in leaves(written):
        now, values = instead_of(key), VALUES.get(key, {})
        if now is not None:
            yield Fault(key, f"is called {now} now; write {now}=VALUE")
        elif isinstance(value, str) and value in values:
            yield Fault(key, f"got {value}, which is called {values[value]} now; write {key}={values[value]}")
    read = {".".join(name.split(".")[:2]) for name in references(written) | references(before)}
    for group, known in (("kd", ("objective",)), ("strategy", ("name", "stages"))):
        options = written.get(group)
        for name in options if isinstance(options, Mapping) else ():
            if name not in known and not {f"{group}.{name}", group} & read:
                yield Fault(f"{group}.{name}", "nothing reads this key; see --cfg job for the keys there are")
