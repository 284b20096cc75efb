"""How a matrix [M, N] is cut into modes: candidates for the search.

Rising input modes against falling output modes keep the intermediate product small and were measured both faster
and more accurate than balanced pairs; the two-core case ((1, N), (M, 1)) is the low-rank SVD. Sizes with awkward
factors (127, 1009) are padded to a near size that factorizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

Pair = tuple[int, int]

# Share of log(N) that each input mode gets; the output modes take the same shares in reverse.
PATTERNS: dict[int, tuple[tuple[float, ...], ...]] = {
    1: ((1.0,),),
    2: ((0.0, 1.0), (0.25, 0.75), (1 / 3, 2 / 3), (0.5, 0.5)),
    3: ((0.0, 1 / 3, 2 / 3), (0.0, 0.5, 0.5), (1 / 6, 1 / 3, 1 / 2), (1 / 3, 1 / 3, 1 / 3)),
    4: ((0.0, 1 / 6, 1 / 3, 1 / 2), (0.1, 0.2, 0.3, 0.4), (0.25, 0.25, 0.25, 0.25)),
}
MAX_PADDING = 0.08


@dataclass(frozen=True)
class Modes:
    """Input and output modes of d cores; `stages` are the kernels (a, b) of the cores of a convolution."""

    input_dims: tuple[int, ...]
    output_dims: tuple[int, ...]
    stages: tuple[Pair, ...] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """m_k n_k of each core."""
        return tuple(m * n for m, n in zip(self.output_dims, self.input_dims, strict=True))

    def __str__(self) -> str:
        if self.stages is not None:
            return "-".join(f"{a}x{b}" for a, b in self.stages)
        return "x".join(map(str, self.input_dims)) + " to " + "x".join(map(str, self.output_dims))


def svd_modes(num_inputs: int, num_outputs: int) -> Modes:
    """The two-core case that is the low-rank SVD."""
    return Modes((1, num_inputs), (num_outputs, 1))


def linear_modes(num_inputs: int, num_outputs: int, *, num_cores: int | None = None) -> list[Modes]:
    """Candidates for a matrix [num_outputs, num_inputs], the low-rank SVD first (unless `num_cores` is not 2).

    Raises:
        ValueError: `num_cores` is not between 1 and 4.
    """
    if num_cores is not None and num_cores not in PATTERNS:
        raise ValueError(f"expected num_cores between 1 and {max(PATTERNS)}, got {num_cores}")
    found: dict[Modes, None] = {}
    for d in (2, 3, 4) if num_cores is None else (num_cores,):
        for pattern in PATTERNS[d]:
            inputs = nearest_factors(num_inputs, pattern)
            outputs = nearest_factors(num_outputs, tuple(reversed(pattern)))
            found[Modes(inputs, outputs)] = None
    options = list(found)
    # Modes with all but one core of size 1 are the dense matrix; the first is kept, so that there always is one.
    return options[:1] + [modes for modes in options[1:] if sum(size > 1 for size in modes.sizes) > 1]


def stage_modes(stages: Sequence[Pair], in_channels: int, out_channels: int) -> Modes:
    """Modes of the cores of a convolution cut into these stages (see `conv.py`)."""
    input_dims = [a * b for a, b in stages]
    input_dims[0] *= in_channels
    return Modes(tuple(input_dims), (1,) * (len(stages) - 1) + (out_channels,), tuple(stages))


def conv_modes(
    in_channels: int, out_channels: int, kernel_size: Pair, *, num_cores: int | None = None
) -> list[Modes]:
    """Every way to cut (I, kh, kw, O) into at least two stages, the low-rank SVD (kernel, then 1x1) first.

    Raises:
        ValueError: no form has `num_cores` stages.
    """
    kh, kw = kernel_size
    forms: dict[tuple[Pair, ...], None] = {((kh, kw), (1, 1)): None}
    forms[((1, 1), (kh, kw))] = None
    if kh * kw > 1:
        forms[((1, 1), (kh, kw), (1, 1))] = None
    if kh > 1 and kw > 1:
        for form in (
            ((kh, 1), (1, kw)),
            ((1, 1), (kh, 1), (1, kw)),
            ((kh, 1), (1, kw), (1, 1)),
            ((1, 1), (kh, 1), (1, kw), (1, 1)),
        ):
            forms[form] = None
    lengths = sorted({len(form) for form in forms})
    if num_cores is not None and num_cores not in lengths:
        raise ValueError(f"expected num_cores in {lengths} for a {kh}x{kw} kernel, got {num_cores}")
    return [stage_modes(form, in_channels, out_channels) for form in forms if num_cores in (None, len(form))]


@lru_cache(maxsize=4096)
def nearest_factors(size: int, pattern: tuple[float, ...], *, padding: bool = True) -> tuple[int, ...]:
    """Factors of `size`, or of a slightly larger number, with logarithms nearest to shares `pattern`.

    The modes follow the order of the pattern: rising patterns give rising modes.
    """
    best, least = (size,), math.inf
    rising = all(a <= b for a, b in pairwise(pattern))
    for padded in _sizes(size) if padding else [size]:
        for factors in factorizations(padded, len(pattern)):
            ordered = factors if rising else tuple(reversed(factors))
            distance = sum(
                abs(math.log(f) - share * math.log(size)) for f, share in zip(ordered, pattern, strict=True)
            )
            # Padding costs parameters and work in proportion: 2.5% more is as bad as one mode off by 2.7x.
            distance += 40.0 * math.log(padded / size)
            if distance < least - 1e-12:
                best, least = ordered, distance
    return best


@lru_cache(maxsize=4096)
def factorizations(size: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """All rising tuples of `parts` factors whose product is `size`."""
    return tuple(_rising(size, parts, 1))


def _rising(size: int, parts: int, least: int) -> list[tuple[int, ...]]:
    if parts == 1:
        return [(size,)] if size >= least else []
    found = []
    for factor in range(least, math.floor(size ** (1 / parts) + 1e-9) + 1):
        if size % factor == 0:
            found += [(factor, *rest) for rest in _rising(size // factor, parts - 1, factor)]
    return found


def _sizes(size: int) -> list[int]:
    """The size itself and, within the padding allowed, the next numbers without prime factors above 7."""
    limit = size + max(1, math.floor(size * MAX_PADDING))
    smooth = [n for n in range(size + 1, limit + 1) if _is_smooth(n)]
    return [size, *smooth[:3]]


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1
