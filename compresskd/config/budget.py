"""`total_epochs`: one budget of epochs for a whole strategy, so that strategies of one stage and of many compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from compresskd.config.faults import ConfigError, Fault


def share_epochs(cfg: DictConfig) -> None:
    """Set `epochs`, in place, so that the stages which follow it come to `total_epochs` together.

    A stage that sets its own number of epochs keeps it, and is not counted. A ladder of steps counts as many.

    Raises:
        ConfigError: where not even one epoch a stage is left.
    """
    budget = cfg.get("total_epochs")
    if budget is None:
        return
    count = sum(_count(cfg, node) for node in (cfg.strategy.get("stages") or {}).values())
    if count == 0:
        return
    if budget < count:
        text = f"came {budget}; allowed: null, or at least {count}, one for each training stage of {cfg.strategy.name}"
        raise ConfigError([Fault("total_epochs", text)])
    cfg.epochs = budget // count


def _count(cfg: DictConfig, node: Any) -> int:
    """How many trainings of `epochs` a stage's node stands for."""
    if not isinstance(node, Mapping | DictConfig) or "epochs" not in node:
        return 0
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    if raw["epochs"] != "${epochs}":
        return 0
    if "stages" not in raw:
        return 1
    steps = (
        instantiate(cfg.rank_schedule, _convert_="all")
        if raw["stages"] == "${rank_schedule}"
        else raw["stages"]
    )
    return sum(1 for step in steps if step.get("epochs") is None)
