"""The top level of the configuration with its types, and what Hydra has to be told before it composes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from pydantic import AfterValidator, StringConstraints

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
    """How a teacher without `teacher.weights` is trained; its other keys are those of a run."""

    epochs: Whole | None
    seed: Seed


@dataclass
class Strategy:
    """Stages by name, in order."""

    name: Name
    stages: Mapping[Annotated[Name, AfterValidator(_free)], Mapping[str, Any]]


@dataclass
class Config:
    """Top-level keys; the options of groups are judged by what their `_target_` names.

    Attributes:
        outputs_dir: where runs, sweeps and teachers go.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16 or fp16, by autocast.
        rank: the largest TT-rank of a factorized layer.
        bits: of quantized weights; null leaves them in floating point, unless the strategy quantizes by itself.
        epochs: of each training stage that does not say otherwise.
        total_epochs: of all training stages together, shared equally in place of `epochs`; null does not share.
        tt: how factorized layers run: `plan`, fixed or measured, see `compresskd.tt.execution.policy`.
        measure: what is measured of each model besides its scores and size: `latency`, true or false.
        teacher_fit: how a teacher without `teacher.weights` is trained: epochs, seed, optimizer, scheduler, train.
    """

    data: Options = field(default_factory=dict)
    teacher: Options = field(default_factory=dict)
    student: Options = field(default_factory=dict)
    strategy: Options = field(default_factory=dict)
    task: Options = field(default_factory=dict)
    kd: Options = field(default_factory=dict)
    compress: Options = field(default_factory=dict)
    rank_schedule: Options = field(default_factory=dict)
    quant: Options = field(default_factory=dict)
    optimizer: Options = field(default_factory=dict)
    scheduler: Options = field(default_factory=dict)
    train: Options = field(default_factory=dict)
    teacher_fit: Options = field(default_factory=dict)
    tt: Mapping[str, Annotated[str, one_of(*SOURCES)]] = field(default_factory=lambda: {"plan": FIXED})
    measure: Mapping[str, bool] = field(default_factory=lambda: {"latency": True})
    outputs_dir: str = "outputs"
    rank: Annotated[int, Ge(1)] = 32
    bits: Annotated[int, one_of(*BITS)] | None = None
    seed: Seed = 0
    epochs: Whole = 30
    total_epochs: Whole | None = None
    device: str = "auto"
    precision: str = "fp32"


DEFAULTS = dataclasses.asdict(Config())
GROUPS = [key for key, default in DEFAULTS.items() if default == {}]


def conf_dir() -> Path:
    """The shipped configuration: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _complement(share: Any) -> Any:
    """1 - share; what is no number passes, to be named where numbers are checked, with its key."""
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    return 1 - share if is_number else share


def _suffix(label: str, value: Any) -> str:
    """What a value adds to a name: nothing where it is null."""
    return "" if value is None else f"{label}{value}"


def register(*config_dirs: Path) -> None:
    """Tell Hydra the defaults, the resolvers, and the groups `teacher` and `student`.

    Both groups offer every architecture in `model/` of the shipped configuration and of `config_dirs`, so that
    an architecture is written once and serves both.
    """
    OmegaConf.register_new_resolver("complement", _complement, replace=True)
    OmegaConf.register_new_resolver("suffix", _suffix, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=DEFAULTS)
    for folder in (conf_dir(), *config_dirs):
        for path in sorted((folder / "model").glob("*.yaml")):
            for role in MODEL_ROLES:
                node = {"defaults": [{"/model@_here_": path.stem}, "_self_"], "weights": None}
                store.store(group=role, name=path.stem, node=node)
