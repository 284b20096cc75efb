"""What a record may ask for, and the data of a recorded run, or other data in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from compresskd.config.allowed import outside_targets
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import leaves
from compresskd.config.parts import Parts
from compresskd.config.resolved import resolved
from compresskd.config.schema import GROUPS
from compresskd.data.base import Data
from compresskd.options import shown
from compresskd.targets.paths import Untrusted, check_trusted


def check_recorded(config: Mapping[str, Any], trust: Sequence[str]) -> None:
    """Judge a recorded configuration before anything is made of it, imported or interpolated.

    Raises:
        ConfigError: with every `_target_` outside of compresskd and `trust`, every `${...}` (a configuration is
            recorded with its values), and every group that is none.
    """
    faults = [
        Fault(name, f"got {shown(config[name])}, expected a mapping of options")
        for name in GROUPS
        if not isinstance(config.get(name, {}), Mapping)
    ]
    faults += [
        Fault(key, f"got {shown(value)}; a record holds no ${{...}}")
        for key, value in leaves(config)
        if "${" in key or (isinstance(value, str) and "${" in value)
    ]
    for key, path in outside_targets(config):
        try:
            check_trusted(path, trust=trust)
        except Untrusted as error:
            faults.append(Fault(key, str(error)))
    if faults:
        raise ConfigError(faults)


def data_of(
    config: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    trust: Sequence[str] = (),
    config_dirs: Sequence[Path] = (),
) -> Data:
    """Load the data of a resolved configuration.

    Args:
        config: that of the record.
        overrides: `data=NAME` chooses another set, `data.KEY=VALUE` changes one option of the set; what they name
            is the user's own word, and may run.
        trust: packages besides compresskd whose code may run for what the record names.
        config_dirs: searched for NAME besides the shipped configuration.

    Raises:
        ConfigError: for an override that is not about data, data that cannot be loaded, or code that may not run.
    """
    for line in overrides:
        if not line.startswith(("data=", "data.")):
            raise ConfigError(
                [Fault(line, "is not about the data; evaluate takes data=NAME and data.KEY=VALUE only")]
            )
    if not any(line.startswith("data=") for line in overrides):
        check_recorded({"data": config.get("data"), "task": config.get("task") or {}}, trust)
    named = _other(config, list(overrides), config_dirs) if overrides else config["data"]
    said = [path.partition(".")[0] for _, path in outside_targets(named)] if overrides else []
    parts = Parts({"data": named, "task": config.get("task")}, trust=(*trust, *said))
    parts.check_group("data")
    data = parts.data(parts.task())
    parts.stop_at_faults()
    assert data is not None
    return data


def _other(config: Mapping[str, Any], overrides: list[str], config_dirs: Sequence[Path]) -> dict[str, Any]:
    if not any(line.startswith("data=") for line in overrides):
        changed = OmegaConf.merge({"data": config["data"]}, OmegaConf.from_dotlist(overrides))
        assert isinstance(changed, DictConfig)
        return resolved(changed)["data"]
    (job,) = compose_jobs(overrides, config_dirs=config_dirs).jobs
    if job.faults:
        raise ConfigError(job.faults)
    return resolved(job.config)["data"]
