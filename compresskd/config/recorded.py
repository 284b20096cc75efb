"""The data of a recorded run, or other data in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import resolve
from compresskd.config.parts import Parts, as_it_is
from compresskd.data.base import Data


def data_of(config: dict[str, Any], overrides: Sequence[str] = ()) -> Data:
    """Load the data of a resolved configuration.

    Args:
        config: that of the record.
        overrides: `data=NAME` chooses another set, `data.KEY=VALUE` changes one option of the set.

    Raises:
        ConfigError: for an override that is not about data, or data that cannot be loaded.
    """
    for line in overrides:
        if not line.startswith(("data=", "data.")):
            raise ConfigError(
                [Fault(line, "is not about the data; evaluate takes data=NAME and data.KEY=VALUE only")]
            )
    if overrides:
        config = config | {"data": _other(config, list(overrides))}
    parts = Parts(config, as_it_is)
    data = parts.data()
    parts.stop_at_faults()
    assert data is not None
    return data


def _other(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    if not any(line.startswith("data=") for line in overrides):
        changed = OmegaConf.merge({"data": config["data"]}, OmegaConf.from_dotlist(overrides))
        assert isinstance(changed, DictConfig)
        return resolve(changed)["data"]
    (job,) = compose_jobs(overrides).jobs
    if job.faults:
        raise ConfigError(job.faults)
    return resolve(job.config)["data"]
