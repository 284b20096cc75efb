"""predictions.npz: which test samples a stage's student classified correctly."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compresskd.compare.reading import read_file

PREDICTIONS = "predictions.npz"
TARGETS = "targets"
MAX_BYTES = 2**28  # of the file, and of one array in memory: more samples than any test set has
_DAMAGE = (  # what zipfile and numpy raise on a file that is cut off, changed or made up
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    TypeError,
    RuntimeError,
    MemoryError,
)


class PredictionsError(ValueError):
    """Predictions that are not there or cannot be used; the message says why."""


def read_predictions(directory: Path, stage: str) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Predicted classes [N] of a stage and the targets [N], in the order of the test set.

    Raises:
        PredictionsError: no such file, damaged, without this stage, or arrays of other shapes or types.
    """
    try:
        content = io.BytesIO(read_file(directory / PREDICTIONS, MAX_BYTES))
        with zipfile.ZipFile(content) as archive:
            sizes = {one.filename.removesuffix(".npy"): one.file_size for one in archive.infolist()}
        missing = [name for name in (stage, TARGETS) if name not in sizes]
        if missing:
            raise PredictionsError(f"{PREDICTIONS} holds no {' and no '.join(missing)}")
        if max(sizes[stage], sizes[TARGETS]) > MAX_BYTES:
            raise PredictionsError(f"{PREDICTIONS}: an array of more than {MAX_BYTES:,} bytes")
        with np.load(content, allow_pickle=False) as arrays:
            predicted, targets = arrays[stage], arrays[TARGETS]
    except FileNotFoundError:
        raise PredictionsError(f"no {PREDICTIONS}") from None
    except PredictionsError:
        raise
    except _DAMAGE as error:
        raise PredictionsError(f"{PREDICTIONS} cannot be read: {str(error)[:80]}") from None
    for name, array in ((stage, predicted), (TARGETS, targets)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise PredictionsError(f"{PREDICTIONS}: {name} is {array.dtype} {array.shape}, not integers [N]")
    if predicted.shape != targets.shape or predicted.size == 0:
        raise PredictionsError(f"{PREDICTIONS}: {predicted.size} predictions, {targets.size} targets")
    return predicted, targets
