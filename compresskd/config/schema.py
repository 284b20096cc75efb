"""The typed top level of the configuration, and what Hydra has to be told before it composes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

MODEL_ROLES = ("teacher", "student")


@dataclass
class TensorTrains:
    """How factorized layers run.

    Attributes:
        plan: where their plans come from: fixed or measured, see `compresskd.tt.execution.policy`.
    """

    plan: str = "fixed"


@dataclass
class Config:
    """Top-level keys. Groups are checked where they are built; scalars have their types here.

    Attributes:
        outputs_dir: where runs, sweeps and teachers go.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: fp32, bf16 or fp16, by autocast.
        rank: the largest TT-rank of a factorized layer.
        bits: of quantized weights; null leaves them in floating point, unless the strategy quantizes by itself.
        epochs: of each training stage that does not say otherwise.
        total_epochs: of all training stages together, shared equally in place of `epochs`; null does not share.
        tt: how factorized layers run.
        teacher_fit: how a teacher without `teacher.weights` is trained: epochs, seed, optimizer, scheduler, train.
    """

    data: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    kd: dict[str, Any] = field(default_factory=dict)
    compress: dict[str, Any] = field(default_factory=dict)
    rank_schedule: dict[str, Any] = field(default_factory=dict)
    quant: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    teacher_fit: dict[str, Any] = field(default_factory=dict)
    tt: TensorTrains = field(default_factory=TensorTrains)
    outputs_dir: str = "outputs"
    rank: int = 32
    bits: int | None = None
    seed: int = 0
    epochs: int = 30
    total_epochs: int | None = None
    device: str = "auto"
    precision: str = "fp32"


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
    """Tell Hydra the schema, the resolvers, and the groups `teacher` and `student`.

    Both groups offer every architecture in `model/` of the shipped configuration and of `config_dirs`, so that
    an architecture is written once and serves both.
    """
    OmegaConf.register_new_resolver("complement", _complement, replace=True)
    OmegaConf.register_new_resolver("suffix", _suffix, replace=True)
    store = ConfigStore.instance()
    # Hydra copies its sources, and with them all that is stored here, each time it lists a group: a hundred times
    # for --help. What is stored is never changed, so that the copy may be the thing itself.
    vars(store)["__deepcopy__"] = lambda memo: store
    store.store(name="schema", node=Config)
    for folder in (conf_dir(), *config_dirs):
        for path in sorted((folder / "model").glob("*.yaml")):
            for role in MODEL_ROLES:
                node = {"defaults": [{"/model@_here_": path.stem}, "_self_"], "weights": None}
                store.store(group=role, name=path.stem, node=node)
