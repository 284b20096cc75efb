"""What every architecture asks of its arguments, so that a wrong one is named before anything is built."""

from collections.abc import Sequence
from math import inf, prod


def at_least(name: str, value: object, minimum: int, *, architecture: str) -> int:
    """Return `value` as it came if it is an integer of at least `minimum`; ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(
            f"{architecture}: {name} must be an integer of at least {minimum}, got {value!r}"
            + (" (the data must be loaded first to know it)" if value is None else "")
        )
    return value


def fraction(name: str, value: object, *, architecture: str) -> float:
    """Return `value` as a float if it lies in [0, 1); ValueError otherwise."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{architecture}: {name} must be a number in [0, 1), got {value!r}")
    return float(value)


def positive(name: str, value: object, *, architecture: str) -> float:
    """Return `value` as a float if it is a finite number above 0; ValueError otherwise."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
        raise ValueError(f"{architecture}: {name} must be a finite number above 0, got {value!r}")
    return float(value)


def blocks_per_group(depth: object, rest: int, *, architecture: str) -> int:
    """Return n of a residual network in three groups, depth 6n + `rest`; ValueError where there is none."""
    at_least("depth", depth, 6 + rest, architecture=architecture)
    if not isinstance(depth, int) or (depth - rest) % 6:
        raise ValueError(
            f"{architecture}: depth must be 6n + {rest}, such as {18 + rest} or {36 + rest}, got {depth!r}"
        )
    return (depth - rest) // 6


def shape(input_shape: object, *, architecture: str) -> tuple[int, ...]:
    """Return the shape of one sample, without the batch, as a tuple; ValueError unless positive integers."""
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str) or not input_shape:
        raise ValueError(
            f"{architecture}: input_shape must be the shape of one sample without the batch, such as "
            f"[3, 32, 32] or [64], got {input_shape!r}"
            + (" (the data must be loaded first to know it)" if input_shape is None else "")
        )
    return tuple(
        at_least(f"input_shape[{position}]", size, 1, architecture=architecture)
        for position, size in enumerate(input_shape)
    )


def flat_size(input_shape: object, *, architecture: str) -> int:
    """Return the number of values in one sample of any shape."""
    return prod(shape(input_shape, architecture=architecture))


def image_shape(
    input_shape: object, *, architecture: str, minimum: int = 1, instead: str = "mlp"
) -> tuple[int, int, int]:
    """Return (channels, height, width) of one sample.

    Args:
        input_shape: what the configuration gave, `[C, H, W]`.
        architecture: the name that error messages begin with.
        minimum: the least height and width, in pixels, that the architecture can process.
        instead: what an error recommends for smaller images.

    Raises:
        ValueError: not three positive integers, or an image below `minimum`.
    """
    sizes = shape(input_shape, architecture=architecture)
    if len(sizes) != 3:
        raise ValueError(
            f"{architecture} needs images, input_shape [channels, height, width], got {list(sizes)}; "
            "choose `mlp` for vectors"
        )
    channels, height, width = sizes
    if min(height, width) < minimum:
        raise ValueError(
            f"{architecture} needs images of at least {minimum}x{minimum} pixels, got {height}x{width} "
            f"(input_shape {list(sizes)}); choose {instead}"
        )
    return channels, height, width
