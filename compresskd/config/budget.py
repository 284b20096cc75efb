"""`total_epochs`: one budget of epochs for a whole strategy, so that strategies of one stage and of many compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from compresskd.config.allowed import RANK_SCHEDULE
from compresskd.config.faults import ConfigError, Fault
from compresskd.models.build import construct
from compresskd.targets.kinds import resolve_kind

_QUANTIZATION = "compresskd.stages.Quantization"


def share_epochs(cfg: DictConfig) -> None:
    """Set `epochs`, in place, so that all training stages come to exactly `total_epochs` together.

    A stage that sets its own number of epochs keeps it, and the others share what is left. A schedule of ranks counts
    as many stages. The teacher keeps the epochs that it had.

    Raises:
        ConfigError: where the stages cannot have equal shares of at least one epoch.
    """
    budget = cfg.get("total_epochs")
    if budget is None:
        return
    try:
        trainings = [own for node in (cfg.strategy.get("stages") or {}).values() for own in _trainings(node)]
    except (AttributeError, ValueError, TypeError):  # faults, which are told with the others
        return
    count, fixed = trainings.count(None), sum(own for own in trainings if isinstance(own, int))
    if count == 0:
        return
    if budget - fixed < count or (budget - fixed) % count:
        least = max(budget - (budget - fixed) % count, fixed + count)
        rest = f" share what the others leave of it ({fixed} are set)" if fixed else " share it"
        stages = f"{count} training stages" if count > 1 else "1 training stage"
        text = (
            f"came {budget}; {stages} of {cfg.strategy.name}{rest} equally: write {least} or {least + count}"
        )
        raise ConfigError([Fault("total_epochs", text)])
    teacher_fit = cfg.get("teacher_fit")
    if teacher_fit and "epochs" in teacher_fit:
        teacher_fit.epochs = teacher_fit.epochs  # a reference to `epochs` means what was typed there
    cfg.epochs = (budget - fixed) // count


def _trainings(node: Any) -> Iterator[int | None]:
    """The epochs of each training that a stage's node stands for; None for those that follow `epochs`."""
    if not isinstance(node, DictConfig) or "epochs" not in node:
        return
    quantization = node.get("quantization")
    if quantization is not None and quantization.get("_target_") == _QUANTIZATION:
        if not _is_trained(quantization, node):
            return
        if quantization.get("epochs") is not None:
            yield quantization["epochs"]
            return
    written: Any = node._get_node("epochs")
    own = None if written._value() == "${epochs}" else node["epochs"]
    for step in _steps(node):
        yield own if step.get("epochs") is None else step["epochs"]


def _is_trained(quantization: DictConfig, stage: DictConfig) -> bool:
    """Whether a stage that quantizes does so by training."""
    bits = stage.get("default_bits") if quantization.get("bits") is None else quantization["bits"]
    asked = bits is not None or quantization.get("budget") is not None
    return asked and quantization.get("enabled", True) and quantization.get("mode", "qat") == "qat"


def _steps(node: DictConfig) -> Sequence[Mapping[str, Any]]:
    """The steps of a schedule, written out or made by a schedule; one of any other stage."""
    if "stages" not in node:
        return [{}]
    steps: Any = OmegaConf.to_container(node["stages"], resolve=True)
    return construct(steps, lambda path: resolve_kind(path, RANK_SCHEDULE))
