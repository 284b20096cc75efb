"""How far an exported model is from its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresskd.export.errors import ExportFailed
from compresskd.export.samples import Samples
from compresskd.tasks import Inputs, call, logits_of, num_samples, sliced

Run = Callable[[Inputs], Tensor]
BATCH_SIZES = (1, 32)
_ONE_BY_ONE = 16  # samples that are also given one by one
_FLOAT_TOLERANCE, _ROUNDING_TOLERANCE = 1e-4, 0.05
_FEWEST_EQUAL, _LARGEST_SLIP = 0.98, 0.5


@dataclass(frozen=True)
class Agreement:
    """Over all samples and batch sizes.

    Attributes:
        largest_difference: of any output, absolute.
        largest_output: of the source, absolute: what a difference is to be seen against.
        equal_predictions: fraction of the samples, or of their tokens, with the same largest output.
        num_compared: outputs; a sample counts for every batch size.
    """

    largest_difference: float
    largest_output: float
    equal_predictions: float
    num_compared: int


def run_of(model: nn.Module) -> Run:
    """A model as what maps inputs to logits."""
    return lambda inputs: logits_of(call(model, inputs))


@torch.inference_mode()
def compare(
    source: Run, exported: Run, inputs: Inputs, batch_sizes: Sequence[int] = BATCH_SIZES
) -> Agreement:
    """Outputs of both on inputs of N samples, in batches of each of the sizes; at size 1 the first few.

    Raises:
        ExportFailed: there is nothing to compare, an output is not finite, or the two differ in shape or type.
    """
    if not num_samples(inputs):
        raise ExportFailed("no samples: nothing to compare; nothing was kept")
    difference, largest, equal, count, rows = 0.0, 0.0, 0, 0, 0
    for size in batch_sizes:
        total = num_samples(inputs) if size > 1 else min(_ONE_BY_ONE, num_samples(inputs))
        for start in range(0, total, size):
            batch = sliced(inputs, start, min(start + size, total))
            expected, came = source(batch), exported(batch)
            _check_comparable(expected, came, num_samples(batch))
            difference = max(difference, float((expected - came).abs().max()))
            largest = max(largest, float(expected.abs().max()))
            same = expected.argmax(-1) == came.argmax(-1)
            equal, rows, count = equal + int(same.sum()), rows + same.numel(), count + num_samples(batch)
    return Agreement(difference, largest, equal / max(1, rows), count)


def _check_comparable(expected: Tensor, came: Tensor, num_samples: int) -> None:
    """What cannot be compared does not agree: the largest of differences that are no numbers would be 0."""
    if (came.shape, came.dtype) != (expected.shape, expected.dtype):
        raise ExportFailed(
            f"expected outputs {list(expected.shape)} of {expected.dtype}, got {list(came.shape)} of {came.dtype}; "
            "nothing was kept"
        )
    if not num_samples or len(expected) != num_samples or not expected.numel():
        raise ExportFailed(
            f"outputs {list(expected.shape)} for {num_samples} samples: nothing to compare; nothing was kept"
        )
    for name, outputs in (("the model itself", expected), ("the exported model", came)):
        if not outputs.isfinite().all():
            raise ExportFailed(f"{name} answers NaN or infinity, which agrees with nothing; nothing was kept")


def worst(found: Sequence[Agreement]) -> Agreement:
    """The largest difference and the fewest equal predictions of several ways to run the same file, one at least."""
    return Agreement(
        max(one.largest_difference for one in found),
        max(one.largest_output for one in found),
        min(one.equal_predictions for one in found),
        found[0].num_compared,
    )


def check(agreement: Agreement, samples: Samples, *, rounds_inputs: bool) -> None:
    """Raise ExportFailed where the exported model answers otherwise than the source.

    Float arithmetic in another order is allowed 1e-4 of the largest output. Where inputs are rounded to integers, a
    value at the border of two may fall to either side: then it is a twentieth. Where 98 of 100 predictions stay, it is
    1e-4 whatever the outputs (small ones are the difference of larger sums) or, with rounded inputs, half the largest.
    """
    difference, largest = agreement.largest_difference, agreement.largest_output
    close = difference <= (_ROUNDING_TOLERANCE if rounds_inputs else _FLOAT_TOLERANCE) * largest
    slip = _LARGEST_SLIP * largest if rounds_inputs else _FLOAT_TOLERANCE
    slips = difference <= slip and agreement.equal_predictions >= _FEWEST_EQUAL
    if not (math.isfinite(largest) and (close or slips)):
        raise ExportFailed(
            f"the exported model answers otherwise than its source on {samples.kind}: largest difference "
            f"{agreement.largest_difference:.3g} (outputs up to {agreement.largest_output:.3g}), equal predictions "
            f"{100 * agreement.equal_predictions:.2f}%; nothing was kept"
        )
