"""How a stage's student did on each test sample."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compresskd.run import RunDirectoryError
from compresskd.run.predictions import SCORES, read_predictions

PREDICTIONS = "predictions.npz"
TARGETS = "targets"


class PredictionsError(ValueError):
    """Predictions that are not there or cannot be used; the message says why."""


@dataclass(frozen=True)
class Scored:
    """How each of S test samples was judged, higher is better.

    scores: [S] bool, right or wrong, where one class was predicted of each sample; else float32.
    targets: [S] those classes, else None.
    """

    scores: NDArray[Any]
    targets: NDArray[np.integer[Any]] | None


def read_scores(directory: Path, stage: str) -> Scored:
    """Read how the student of a stage did on each sample, in the order of the test set.

    Raises:
        PredictionsError: no such file, damaged, without this stage, or of other lengths.
    """
    try:
        arrays = read_predictions(directory / PREDICTIONS)
    except FileNotFoundError:
        raise PredictionsError(f"no {PREDICTIONS}") from None
    except (OSError, RunDirectoryError) as error:
        reason = str(error).partition("; remove it")[0].removeprefix(f"{directory}/")
        raise PredictionsError(f"{PREDICTIONS} cannot be read: {reason}") from None
    scores = arrays.get(f"{SCORES}{stage}")
    if scores is not None:
        if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
            raise PredictionsError(
                f"{PREDICTIONS}: expected finite scores [S] of {stage}, got {scores.shape}"
            )
        return Scored(scores, None)
    missing = [name for name in (stage, TARGETS) if name not in arrays]
    if missing:
        raise PredictionsError(f"{PREDICTIONS} holds no {' and no '.join(missing)}")
    predicted, targets = arrays[stage], arrays[TARGETS]
    if {predicted.dtype.kind, targets.dtype.kind} - {"i", "u"} or predicted.ndim != 1:
        raise PredictionsError(f"{PREDICTIONS}: expected classes [N] of {stage}, got {predicted.dtype}")
    if predicted.shape != targets.shape or predicted.size == 0:
        raise PredictionsError(f"{PREDICTIONS}: {predicted.size} predictions, {targets.size} targets")
    return Scored(predicted == targets, targets)
