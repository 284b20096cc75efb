"""Models of how often the integers of a tensor take each level, few bytes each, for the entropy coder.

By their byte: 1 two-sided geometric and 2 Gaussian, with 2 bytes of parameters (centre, spread); 3 a table
with 4 bits for every level, 4 a table with 8 bits. Probabilities are computed by multiplication, division
and square root alone, which every machine rounds alike: a stream is read with exactly the numbers it was
written with.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GEOMETRIC, GAUSSIAN, COARSE, FINE = 1, 2, 3, 4
_FLOOR = 2.0**-20  # no level is impossible, whatever the model says


@dataclass(frozen=True)
class Frequencies:
    """A model of the integers of one tensor: its byte, its parameters, and the probability of every level."""

    model: int
    parameters: bytes
    probabilities: NDArray[np.float64]

    def num_bytes(self, counts: NDArray[np.int64]) -> float:
        """Model and integers together, ideally coded."""
        return 1 + len(self.parameters) - float(counts @ np.log2(self.probabilities)) / 8


def best_frequencies(counts: NDArray[np.int64]) -> Frequencies:
    """The model that makes itself and integers of these counts, one for every level, shortest."""
    candidates = [_parametric(model, counts) for model in (GEOMETRIC, GAUSSIAN)]
    candidates += [_table(model, counts) for model in (COARSE, FINE)]
    return min(candidates, key=lambda candidate: candidate.num_bytes(counts))


def parameter_bytes(model: int, num_levels: int) -> int:
    """How many bytes of parameters follow the byte of this model.

    Raises:
        ValueError: there is no such model.
    """
    sizes = {GEOMETRIC: 2, GAUSSIAN: 2, COARSE: (num_levels + 1) // 2, FINE: num_levels}
    if model not in sizes:
        raise ValueError(f"there is no model of frequencies number {model}")
    return sizes[model]


def read_frequencies(model: int, parameters: bytes, num_levels: int) -> Frequencies:
    """The model of these parameters."""
    if model in (GEOMETRIC, GAUSSIAN):
        probabilities = _parametric_probabilities(model, parameters[0], parameters[1], num_levels)
    elif model == COARSE:
        probabilities = _table_probabilities(_unpack_nibbles(parameters, num_levels), 2)
    else:
        probabilities = _table_probabilities(np.frombuffer(parameters, np.uint8), 16)
    return Frequencies(model, parameters, probabilities)


def _parametric(model: int, counts: NDArray[np.int64]) -> Frequencies:
    """Centre by the mean, and the best of all spreads: two bytes."""
    num_levels = len(counts)
    mean = float(counts @ np.arange(num_levels)) / max(int(counts.sum()), 1)
    centres = sorted({int(np.clip(np.floor(2 * mean) + step, 0, 255)) for step in (0, 1)})
    bits = {centre: -(_logarithms(model, centre, num_levels) @ counts) for centre in centres}
    centre = min(centres, key=lambda candidate: float(bits[candidate].min()))
    width = int(bits[centre].argmin())
    return Frequencies(
        model, bytes([centre, width]), _parametric_probabilities(model, centre, width, num_levels)
    )


@lru_cache(maxsize=128)
def _logarithms(model: int, centre: int, num_levels: int) -> NDArray[np.float64]:
    """[256, num_levels] binary logarithms of the probabilities at every spread."""
    return np.log2([_parametric_probabilities(model, centre, width, num_levels) for width in range(256)])


def _parametric_probabilities(model: int, centre: int, width: int, num_levels: int) -> NDArray[np.float64]:
    """Base^distance, or base^(distance^2), with base = 1 - 2^(-(width + 1) / 16) and distances in half levels."""
    distance = np.abs(2 * np.arange(num_levels) - centre)
    exponent = distance if model == GEOMETRIC else distance * distance
    return _normalised(_power(1.0 - _power_of_half(width + 1, 4), exponent))


def _table(model: int, counts: NDArray[np.int64]) -> Frequencies:
    """Quantized logarithms of the frequencies: in half octaves with 4 bits, in sixteenths of one with 8."""
    octave, largest = (2, 15) if model == COARSE else (16, 255)
    share = np.maximum(counts / max(int(counts.max()), 1), _FLOOR)
    steps = np.clip(np.rint(-np.log2(share) * octave), 0, largest).astype(np.uint8)
    parameters = _pack_nibbles(steps) if model == COARSE else steps.tobytes()
    return Frequencies(model, parameters, _table_probabilities(steps, octave))


def _table_probabilities(steps: NDArray[np.uint8], octave: int) -> NDArray[np.float64]:
    return _normalised(np.array([_power_of_half(int(step), octave.bit_length() - 1) for step in steps]))


def _normalised(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    # a loop, not numpy's pairwise sum, whose order is the build's affair
    shares = np.maximum(shares, _FLOOR)
    total = 0.0
    for share in shares.tolist():
        total += share
    return shares / total


@lru_cache(maxsize=1024)
def _power_of_half(numerator: int, num_roots: int) -> float:
    """2^(-numerator / 2^num_roots), by square roots and multiplication."""
    root = 0.5
    for _ in range(num_roots):
        root = float(np.sqrt(root))
    return float(_power(root, np.array([numerator]))[0])


def _power(base: float, exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    """base^exponents by squaring: only multiplications, so that every machine gets the same."""
    result, square, left = np.ones(len(exponents)), base, exponents.copy()
    while left.any():
        result = np.where(left & 1, result * square, result)
        square, left = square * square, left >> 1
    return result


def _pack_nibbles(steps: NDArray[np.uint8]) -> bytes:
    padded = np.pad(steps, (0, len(steps) % 2))
    return (padded[::2] | padded[1::2] << 4).astype(np.uint8).tobytes()


def _unpack_nibbles(data: bytes, count: int) -> NDArray[np.uint8]:
    packed = np.frombuffer(data, np.uint8)
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.uint8)
