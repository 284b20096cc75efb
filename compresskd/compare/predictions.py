"""predictions.npz: which test samples a stage's student classified correctly."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PREDICTIONS = "predictions.npz"
TARGETS = "targets"


class PredictionsError(ValueError):
    """Predictions that are not there or cannot be used; the message says why."""


def read_predictions(directory: Path, stage: str) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Predicted classes [N] of a stage and the targets [N], in the order of the test set.

    Raises:
        PredictionsError: no such file, damaged, without this stage, or arrays of other shapes or types.
    """
    path = directory / PREDICTIONS
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in (stage, TARGETS) if name not in arrays]
            if missing:
                raise PredictionsError(f"{PREDICTIONS} holds no {' and no '.join(missing)}")
            predicted, targets = arrays[stage], arrays[TARGETS]
    except FileNotFoundError:
        raise PredictionsError(f"no {PREDICTIONS}") from None
    except PredictionsError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        TypeError,
    ) as error:
        raise PredictionsError(f"{PREDICTIONS} cannot be read: {str(error)[:80]}") from None
    for name, array in ((stage, predicted), (TARGETS, targets)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise PredictionsError(f"{PREDICTIONS}: {name} is {array.dtype} {array.shape}, not integers [N]")
    if predicted.shape != targets.shape or predicted.size == 0:
        raise PredictionsError(f"{PREDICTIONS}: {predicted.size} predictions, {targets.size} targets")
    return predicted, targets
