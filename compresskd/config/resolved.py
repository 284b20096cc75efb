"""A composition as plain values: references followed, paths absolute, `total_epochs` shared among the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from compresskd.config.faults import ConfigError, Fault
from compresskd.config.origin import interpolation_faults
from compresskd.config.parts import Parts

_PATHS = (("data", "path"), ("teacher", "weights"), ("student", "weights"))
_MAYBE_PATHS = (("teacher", "id"), ("student", "id"), ("data", "tokenizer"))  # or names on the hub, or words


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as nested plain values, paths made absolute so that it means the same anywhere.

    `epochs` becomes an equal share of `total_epochs`, where that is given: all training stages come to exactly that
    many together. A stage that sets its own number keeps it, and the others share what is left; the teacher keeps the
    epochs that it had.

    Raises:
        ConfigError: for every interpolation that leads nowhere; for a total that cannot be shared equally.
    """
    config = _values(cfg)
    total = config.get("total_epochs")
    if not isinstance(total, int) or isinstance(total, bool):
        return config
    one, two = (Parts(_values(cfg, epochs)).strategy() for epochs in (1, 2))
    if one is None or two is None or one.num_epochs == two.num_epochs:  # faults are told with the others
        return config
    count = two.num_epochs - one.num_epochs
    fixed = one.num_epochs - count
    epochs, left = divmod(total - fixed, count)
    if left or epochs < 1:
        least = max(total - left, fixed + count)
        sets = f", beside the {fixed} epochs that are set" if fixed else ""
        stages = f"each of the {count} training stages" if count > 1 else "the 1 training stage"
        shared = f"an equal share for {stages} of {one.name}{sets}"
        raise ConfigError(
            [Fault("total_epochs", f"got {total}, expected {least} or {least + count}: {shared}")]
        )
    return {**_values(cfg, epochs), "teacher_fit": config["teacher_fit"]}


def _values(cfg: DictConfig, epochs: int | None = None) -> dict[str, Any]:
    try:
        values: Any = OmegaConf.to_container(
            cfg if epochs is None else OmegaConf.merge(cfg, {"epochs": epochs}), resolve=True
        )
    except OmegaConfBaseException as error:
        raise ConfigError(interpolation_faults(cfg) or [Fault("", str(error))]) from error
    if values.get("outputs_dir"):
        values["outputs_dir"] = _absolute(values["outputs_dir"])
    for group, key in _PATHS:
        if isinstance(values.get(group), dict) and values[group].get(key):
            values[group][key] = _absolute(values[group][key])
    for group, key in _MAYBE_PATHS:
        place = values[group].get(key) if isinstance(values.get(group), dict) else None
        if isinstance(place, str) and Path(place).expanduser().exists():
            values[group][key] = _absolute(place)
    fit = values.get("teacher_fit")
    comes_with_weights = isinstance(values.get("teacher"), dict) and values["teacher"].get("id")
    if isinstance(fit, dict) and fit.get("epochs", 0) is None and not comes_with_weights:
        fit["epochs"] = values.get("epochs")
    return values


def _absolute(path: Any) -> Any:
    return str(Path(path).expanduser().absolute()) if isinstance(path, str) else path
