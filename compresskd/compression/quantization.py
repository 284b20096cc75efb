"""What `bits` means in a run: which grid, at what granularity, how it is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Self

from annotated_types import Ge, Le

from compresskd.compression.weighting import INPUT, TWO_SIDED
from compresskd.options import Count, Fraction, OptionError, Share, Whole, checked, one_of
from compresskd.quant.cores import CORE_METHODS
from compresskd.quant.fake_quantize import ESTIMATORS
from compresskd.quant.feedback import ROUNDINGS
from compresskd.quant.granularity import Granularity, PerChannel, PerGroup, PerRankSlice, PerTensor
from compresskd.quant.grid import BITS, KINDS
from compresskd.quant.prepare import OTHER_BITS, QuantSpec
from compresskd.quant.scale import METHODS
from compresskd.training import LearningRate

BEST = "best"
_GRANULARITIES: dict[str, dict[str, Granularity]] = {
    "granularity": {"tensor": PerTensor(), "channel": PerChannel()},
    "core_granularity": {"tensor": PerTensor(), "rank_slice": PerRankSlice()},
}


@checked
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
            smaller error, the granularity is 'tensor', 'rank_slice' (one scale for every index of the TT-rank; factors
            that are no cores of a train have one scale each) or the size of groups.
        core_start: how cores are first rounded, see `compresskd.quant.cores`.
        rounding: of the weights of ordinary layers: 'nearest', or 'gptq', which lessens the error of a layer's output
            over inputs from calibration samples; training, where there is any, starts from that.
        data_aware: whether `core_start` counts errors of the layer's output, over inputs from calibration samples.
        estimator: how gradients pass through rounding.
        activation_bits: 8 rounds the inputs of quantized layers too; None leaves them.
        num_calibration: samples that `rounding`, `data_aware`, `activation_bits` and `budget` look at.
        other_bits: of all that is no weight, see `compresskd.quant.prepare.QuantSpec`.
        batch_norm: 'keep' renews running statistics to the end; 'freeze' normalizes by them in the last part of the
            training, as in Krishnamoorthi 2018 (arXiv:1806.08342), which a learning rate that is not small by then may
            not bear; 'fold' makes batch norm part of the weights beforehand.
        freeze_fraction: last part of the training in which scales, ranges and statistics stay.
        budget: bytes of the model file (2 or more), or a share (below 1) of those of the student as it comes: bits and
            ranks of the layers are then chosen to fit; None takes `bits`. Where training follows, which changes
            integers, those of the file before entropy coding count.
        whitening: how `budget` counts the error of a layer: by its 'input', or 'two_sided', also by what gradients of
            the task say of its outputs, see `compresskd.compression.weighting`.
        entropy: weight of the entropy of the integers, bits a weight, in the loss.
        epochs, learning_rate: of quantization-aware training; None takes the stage's, and `optimizer.lr`.

    Raises:
        OptionError: for every value out of its range.
    """

    enabled: bool = True
    mode: Annotated[str, one_of("qat", "ptq", "none")] = "qat"
    bits: Annotated[int, one_of(*BITS)] | None = None
    layers: Mapping[str, Annotated[int, one_of(0, *BITS)]] | None = None
    grid: Annotated[str, one_of(*KINDS)] = "symmetric"
    granularity: Annotated[str, one_of("tensor", "channel")] | Count = "channel"
    core_grid: Annotated[str, one_of(BEST, *KINDS)] = BEST
    core_granularity: Annotated[str, one_of("tensor", "rank_slice")] | Count = "tensor"
    core_start: Annotated[str, one_of(*CORE_METHODS)] = "gauge_als"
    rounding: Annotated[str, one_of(*ROUNDINGS)] = "nearest"
    data_aware: bool = False
    estimator: Annotated[str, one_of(*ESTIMATORS)] = "lsq"
    initial_scale: Annotated[str, one_of(*METHODS)] = "mse"
    activation_bits: Annotated[int, one_of(8)] | None = None
    num_calibration: Count = 512
    other_bits: Annotated[int, one_of(*OTHER_BITS)] = 16
    batch_norm: Annotated[str, one_of("keep", "freeze", "fold")] = "keep"
    freeze_fraction: Fraction = 0.25
    budget: Annotated[int, Ge(2)] | Share | None = None
    whitening: Annotated[str, one_of(INPUT, TWO_SIDED)] = INPUT
    entropy: Annotated[float, Ge(0), Le(1e6)] = 0.0
    epochs: Whole | None = None
    learning_rate: LearningRate | None = None

    def __post_init__(self) -> None:
        if self.whitening != INPUT and self.budget is None:
            raise OptionError(
                "whitening", self.whitening, f"{INPUT} without a budget: nothing else counts errors by it"
            )
        if self.data_aware and self.core_start == "nearest":
            raise OptionError("data_aware", True, "false with core_start=nearest, which learns nothing")

    def wanted(self, default_bits: int | None) -> Self | None:
        """This with the bits that count, or None where nothing is to be quantized.

        Args:
            default_bits: where nobody asked for any; None asks for none.

        Raises:
            OptionError: an option that only counts with bits, without; a grid that does not go with the bits.
        """
        if not self.enabled or self.mode == "none":
            return None
        bits = default_bits if self.bits is None else self.bits
        if self.budget is not None:
            if self.bits is not None:
                raise OptionError("bits", bits, f"null beside budget={self.budget}, which chooses bits")
            bits = 2  # any: those of each layer are chosen
        if bits is None:
            self._check_unused()
            return None
        chosen = replace(self, bits=bits)
        for key in ("grid", "core_grid"):
            wrong = next((b for b in (bits, *self.patterns.values()) if b not in (0, 2)), None)
            if getattr(self, key) == "ternary" and wrong is not None:
                raise OptionError(
                    key, "ternary", f"another grid with {wrong} bits; ternary weights take bits=2"
                )
        return chosen

    def _check_unused(self) -> None:
        for key, unused in (
            ("layers", None),
            ("activation_bits", None),
            ("entropy", 0.0),
            ("rounding", "nearest"),
        ):
            value = getattr(self, key)
            if value and value != unused:
                raise OptionError(
                    key, value, f"{unused or 'nothing'} where bits is null; write bits=8 as well"
                )

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
