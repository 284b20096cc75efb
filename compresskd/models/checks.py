"""What the options of several architectures have in common."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Lt, MinLen

from compresskd.options import Count, OptionError

Classes = Count  # or labels, or the values of a regression
Dropout = Annotated[float, Ge(0), Lt(1)]
Shape = Annotated[Sequence[Count], MinLen(1)]  # of one sample, without the batch, such as [3, 32, 32]


def blocks_per_group(depth: int, rest: int) -> int:
    """Return n of a residual network in three groups, depth 6n + `rest`; OptionError where there is none."""
    if depth < 6 + rest or (depth - rest) % 6:
        raise OptionError("depth", depth, f"6n + {rest}, such as {18 + rest} or {36 + rest}")
    return (depth - rest) // 6


def image_shape(
    input_shape: Shape, *, architecture: str, minimum: int = 1, instead: str = "mlp"
) -> tuple[int, int, int]:
    """Return (channels, height, width) of one sample.

    Args:
        input_shape: what the configuration gave, `[C, H, W]`.
        architecture: the name that error messages begin with.
        minimum: the least height and width, in pixels, that the architecture can process.
        instead: what an error recommends for smaller images.

    Raises:
        ValueError: not three sizes, or an image below `minimum`.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"{architecture} needs images, input_shape [channels, height, width], got {list(input_shape)}; "
            "choose `mlp` for vectors"
        )
    channels, height, width = input_shape
    if min(height, width) < minimum:
        raise ValueError(
            f"{architecture} needs images of at least {minimum}x{minimum} pixels, got {height}x{width} "
            f"(input_shape {list(input_shape)}); choose {instead}"
        )
    return channels, height, width
