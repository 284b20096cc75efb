"""The top level of the configuration with its types, and what Hydra has to be told before it composes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le, MinLen
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, StringConstraints

from compresskd.config.faults import ConfigError, Fault
from compresskd.config.shipped import conf_dir
from compresskd.options import Whole, one_of
from compresskd.quant.grid import BITS
from compresskd.tt.execution.policy import FIXED, SOURCES

MODEL_ROLES = ("teacher", "student")
Options = dict[str, Any]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$", max_length=80)]  # of folders


def _free(name: str) -> str:
    if name in ("teacher", "targets"):
        raise ValueError("another name: predictions.npz has an array `teacher` and one `targets` already")
    return name


@dataclass
class TeacherFit:
    """How a teacher without `teacher.weights` is trained: the keys of a run's recipe."""

    epochs: Whole | None
    seed: Seed
    optimizer: Options
    scheduler: Options
    train: Options


@dataclass
class StrategyNode:
    """Stages by name, in order."""

    name: Name
    stages: Mapping[Annotated[Name, AfterValidator(_free)], Mapping[str, Any]]


@dataclass
class Config:
    """Top-level keys besides the groups, whose options are judged by what their `_target_` names.

    Attributes:
        outputs_dir: where runs, sweeps and teachers go.
        processes: how many work on a run together; torchrun says it itself.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16 or fp16, by autocast.
        rank: the largest TT-rank of a factorized layer.
        bits: of quantized weights; null leaves them in floating point, unless the strategy quantizes by itself.
        epochs: of each training stage that does not say otherwise.
        total_epochs: of all training stages together, shared equally in place of `epochs`; null does not share.
        tt: how factorized layers run: `plan`, fixed or measured, see `compresskd.tt.execution.policy`.
        measure: `latency`, whether models are timed; `validation_only`, whether the test split is left alone.
    """

    tt: Mapping[str, Annotated[str, one_of(*SOURCES)]] = field(default_factory=lambda: {"plan": FIXED})
    outputs_dir: Annotated[str, MinLen(1)] = "outputs"
    measure: Mapping[str, bool] = field(default_factory=lambda: {"latency": True, "validation_only": False})
    rank: Annotated[int, Ge(1)] = 32
    bits: Annotated[int, one_of(*BITS)] | None = None
    seed: Seed = 0
    epochs: Whole = 30
    total_epochs: Whole | None = None
    processes: Annotated[int, Ge(1), Le(4096)] = 1
    device: str = "auto"
    precision: str = "fp32"


GROUPS = (
    *MODEL_ROLES, "data", "strategy", "task", "kd", "compress", "rank_schedule", "quant", "optimizer", "scheduler",
    "train", "teacher_fit", "tracker",
)  # fmt: skip
DEFAULTS: dict[str, Any] = {**{group: {} for group in GROUPS}, **dataclasses.asdict(Config())}


def _complement(share: Any) -> Any:
    """1 - share; what is no number passes, to be named where numbers are checked, with its key."""
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    return 1 - share if is_number else share


def _first(*keys: str, _root_: DictConfig) -> Any:
    """The value of the first of these keys that has one."""
    return next((value for key in keys if (value := OmegaConf.select(_root_, key)) is not None), None)


class Searched(SearchPathPlugin):
    """The folders of --config-dir, at the place that Hydra's own run gives them."""

    folders: ClassVar[Sequence[Path]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them."""
        for folder in self.folders:
            search_path.append("command-line", f"file://{folder.resolve()}")


def register(*config_dirs: Path) -> None:
    """Tell Hydra the folders that are searched, the defaults, the resolvers, and the groups `teacher` and `student`.

    Raises:
        ConfigError: a folder that is not there.
    """
    Plugins.instance().register(Searched)
    Searched.folders = config_dirs
    OmegaConf.register_new_resolver("complement", _complement, replace=True)
    suffix: Any = lambda label, value: "" if value is None else f"{label}{value}"  # noqa: E731 - of a name
    OmegaConf.register_new_resolver("suffix", suffix, replace=True)
    OmegaConf.register_new_resolver("first", _first, replace=True)
    ConfigStore.instance().store(name="schema", node=DEFAULTS)
    offer_models("--config-dir", (conf_dir(), *config_dirs))


def offer_models(key: str, folders: Sequence[Path]) -> None:
    """Have both groups offer every architecture in `model/` of folders, which is written once and serves both.

    Raises:
        ConfigError: of `key`: a folder that is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError([Fault(key, f"got {folder}, expected a folder")])
        for role, path in itertools.product(MODEL_ROLES, sorted((folder / "model").glob("*.yaml"))):
            node = {"defaults": [{"/model@_here_": path.stem}, "_self_"], "weights": None}
            if path.name not in ConfigStore.instance().repo.get(role, {}):
                ConfigStore.instance().store(group=role, name=path.stem, node=node)
