"""Which test samples a stage's student classified correctly."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskd.run import RunDirectoryError
from compresskd.run.predictions import read_predictions as read_arrays

PREDICTIONS = "predictions.npz"
TARGETS = "targets"


class PredictionsError(ValueError):
    """Predictions that are not there or cannot be used; the message says why."""


def read_predictions(
    directory: Path, stage: str
) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
    """Read the predicted classes [N] of a stage and the targets [N], in the order of the test set.

    Raises:
        PredictionsError: no such file, damaged, without this stage, or of other lengths.
    """
    try:
        arrays = read_arrays(directory / PREDICTIONS)
    except FileNotFoundError:
        raise PredictionsError(f"no {PREDICTIONS}") from None
    except (OSError, RunDirectoryError) as error:
        reason = str(error).partition("; remove it")[0].removeprefix(f"{directory}/")
        raise PredictionsError(f"{PREDICTIONS} cannot be read: {reason}") from None
    missing = [name for name in (stage, TARGETS) if name not in arrays]
    if missing:
        raise PredictionsError(f"{PREDICTIONS} holds no {' and no '.join(missing)}")
    predicted, targets = arrays[stage], arrays[TARGETS]
    if predicted.shape != targets.shape or predicted.size == 0:
        raise PredictionsError(f"{PREDICTIONS}: {predicted.size} predictions, {targets.size} targets")
    return predicted, targets
