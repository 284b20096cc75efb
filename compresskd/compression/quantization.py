"""What `bits` means in a run: which grid, at what granularity, how it is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Self, TypeGuard

from compresskd.quant.cores import CORE_METHODS
from compresskd.quant.fake_quantize import ESTIMATORS
from compresskd.quant.granularity import Granularity, PerChannel, PerGroup, PerRankSlice, PerTensor
from compresskd.quant.grid import BITS, KINDS
from compresskd.quant.prepare import OTHER_BITS, QuantSpec
from compresskd.quant.scale import METHODS

MODES = ("qat", "ptq", "none")
BATCH_NORMS = ("freeze", "keep", "fold")
BEST = "best"
_LARGEST_ENTROPY = 1e6
_GRANULARITIES: dict[str, dict[str, Granularity]] = {
    "granularity": {"tensor": PerTensor(), "channel": PerChannel()},
    "core_granularity": {"tensor": PerTensor(), "rank_slice": PerRankSlice()},
}


@dataclass(frozen=True)
class Quantization:
    """How the student is quantized.

    Attributes:
        enabled: whether it is at all.
        mode: 'qat' trains with rounded weights; 'ptq' rounds only; 'none' leaves them.
        bits: of weights; None where nobody asked for any.
        layers: layer-name pattern to bits, the first that fits counts; 0 leaves a layer in floating point.
        grid, granularity, initial_scale: of the weights of ordinary layers. A granularity is 'tensor', 'channel' or a
            whole number, the size of groups.
        core_grid, core_granularity: of the cores of factorized layers; 'best' takes the kind of grid with the
            smaller error, the granularity is 'tensor', 'rank_slice' or the size of groups.
        core_start: how cores are first rounded, see `compresskd.quant.cores`.
        data_aware: whether that counts errors of the layer's output, over inputs from calibration samples.
        estimator: how gradients pass through rounding.
        activation_bits: 8 rounds the inputs of quantized layers too; None leaves them.
        num_calibration: samples that `data_aware`, `activation_bits` and `budget` look at.
        other_bits: of all that is no weight, see `compresskd.quant.prepare.QuantSpec`.
        batch_norm: 'freeze' stops renewing running statistics late, 'keep' never does, 'fold' makes batch norm part
            of the weights beforehand.
        freeze_fraction: last part of the training in which scales, ranges and statistics stay.
        budget: bytes of the model file before entropy coding (2 or more), or a share (below 1) of those of the
            student as it comes: bits and ranks of the layers are then chosen to fit; None takes `bits`.
        entropy: weight of the entropy of the integers, bits a weight, in the loss.
        epochs, learning_rate: of quantization-aware training; None takes the stage's, and `optimizer.lr`.

    Raises:
        ValueError: naming `quant.KEY`, for every value out of its range.
    """

    enabled: bool = True
    mode: str = "qat"
    bits: int | None = None
    layers: Mapping[str, int] | None = None
    grid: str = "symmetric"
    granularity: str | int = "channel"
    core_grid: str = BEST
    core_granularity: str | int = "tensor"
    core_start: str = "gauge_als"
    data_aware: bool = False
    estimator: str = "lsq"
    initial_scale: str = "mse"
    activation_bits: int | None = None
    num_calibration: int = 512
    other_bits: int = 16
    batch_norm: str = "freeze"
    freeze_fraction: float = 0.25
    budget: int | float | None = None
    entropy: float = 0.0
    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise ValueError("\n".join(faults))

    def _faults(self) -> Iterator[str]:
        if self.bits is not None:
            yield from _one_of("bits", self.bits, BITS, "null")
        for pattern, bits in self.patterns.items():
            if not _is_one_of(bits, (0, *BITS)):
                allowed = "0 (floating point), " + ", ".join(map(str, BITS))
                yield f"quant.layers: came {bits!r} for '{pattern}'; allowed: {allowed}"
        for key, allowed in {
            "mode": MODES, "grid": KINDS, "core_grid": (BEST, *KINDS), "core_start": CORE_METHODS,
            "estimator": ESTIMATORS, "initial_scale": METHODS, "other_bits": OTHER_BITS, "batch_norm": BATCH_NORMS,
        }.items():  # fmt: skip
            yield from _one_of(f"quant.{key}", getattr(self, key), allowed)
        for key, named in _GRANULARITIES.items():
            value = getattr(self, key)
            if value not in named and not (_is_whole(value) and value >= 1):
                allowed = ", ".join(named)
                yield f"quant.{key}: came {value!r}; allowed: {allowed}, or a whole number, the size of groups"
        if self.data_aware and self.core_start == "nearest":
            yield "quant.data_aware: came true with core_start nearest, which learns nothing; write false, or gauge"
        if self.activation_bits is not None:
            yield from _one_of("quant.activation_bits", self.activation_bits, (8,), "null")
        yield from self._number_faults()

    def _number_faults(self) -> Iterator[str]:
        if self.num_calibration < 1:
            yield f"quant.num_calibration: came {self.num_calibration}; allowed: 1 or more"
        if not 0 <= self.freeze_fraction <= 1:
            yield f"quant.freeze_fraction: came {self.freeze_fraction}; allowed: 0 to 1"
        is_bytes = _is_whole(self.budget) and self.budget >= 2
        if self.budget is not None and not (is_bytes or 0 < self.budget < 1):
            allowed = "a whole number of bytes (2 or more), a share of the student's (above 0, below 1), null"
            yield f"quant.budget: came {self.budget}; allowed: {allowed}"
        if not 0 <= self.entropy <= _LARGEST_ENTROPY:
            yield f"quant.entropy: came {self.entropy}; allowed: 0 or more, at most {_LARGEST_ENTROPY:g}"
        if self.epochs is not None and self.epochs < 0:
            yield f"quant.epochs: came {self.epochs}; allowed: 0 (no training) or more, or null"
        if self.learning_rate is not None and not self.learning_rate > 0:
            yield f"quant.learning_rate: came {self.learning_rate}; allowed: above 0, or null"

    def wanted(self, default_bits: int | None) -> Self | None:
        """This with the bits that count, or None where nothing is to be quantized.

        Args:
            default_bits: where nobody asked for any; None asks for none.

        Raises:
            ValueError: an option that only counts with bits, without; a grid that does not go with the bits.
        """
        if not self.enabled or self.mode == "none":
            return None
        bits = default_bits if self.bits is None else self.bits
        if self.budget is not None:
            if self.bits is not None:
                raise ValueError(
                    f"bits: came {bits} with quant.budget={self.budget}, which chooses bits; write bits=null"
                )
            bits = 2  # any: those of each layer are chosen
        if bits is None:
            self._check_unused()
            return None
        chosen = replace(self, bits=bits)
        for key in ("grid", "core_grid"):
            wrong = next((b for b in (bits, *self.patterns.values()) if b not in (0, 2)), None)
            if getattr(self, key) == "ternary" and wrong is not None:
                raise ValueError(f"quant.{key}: came ternary with {wrong} bits; ternary weights take bits=2")
        return chosen

    def _check_unused(self) -> None:
        for key in ("layers", "activation_bits", "entropy"):
            value = getattr(self, key)
            if value:
                raise ValueError(f"quant.{key}: came {_plain(value)}, but bits is null; write bits=8 as well")

    @property
    def patterns(self) -> Mapping[str, int]:
        """`layers`, empty where there are none."""
        return self.layers or {}

    def bits_of_pattern(self, layer: str) -> int | None:
        """Bits that `layers` gives a layer; None where no pattern fits its name."""
        return next((bits for pattern, bits in self.patterns.items() if fnmatchcase(layer, pattern)), None)

    def spec(self) -> QuantSpec:
        """How `compresskd.quant` is told."""
        assert self.bits is not None
        return QuantSpec(
            bits=self.bits,
            grid=self.grid,
            granularity=self._granularity("granularity"),
            core_grid="symmetric" if self.core_grid == BEST else self.core_grid,
            core_granularity=self._granularity("core_granularity"),
            estimator=self.estimator,
            initial_scale=self.initial_scale,
            activation_bits=self.activation_bits,
            layers=self.patterns,
            other_bits=self.other_bits,
        )

    def _granularity(self, key: str) -> Granularity:
        value = getattr(self, key)
        return PerGroup(value) if isinstance(value, int) else _GRANULARITIES[key][value]


def _one_of(key: str, value: Any, allowed: tuple[Any, ...], *more: str) -> Iterator[str]:
    if not _is_one_of(value, allowed):
        yield f"{key}: came {value!r}; allowed: {', '.join([*map(str, allowed), *more])}"


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return value in allowed and not isinstance(value, bool)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
