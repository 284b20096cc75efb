"""Dense models as onnxruntime runs them: what the benchmarks of whole models compare with."""

from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)
from torch import Tensor, nn

from compresskd.export import onnx
from compresskd.export.agreement import Run
from compresskd.tasks import Inputs

SLEEPING = {"session.intra_op.allow_spinning": "0"}  # idle threads of one do not hinder the others


class _Samples(CalibrationDataReader):
    def __init__(self, samples: Tensor) -> None:
        self._left = iter([{"input": samples.numpy()}])

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(self._left, None)


def write(model: nn.Module, example: Inputs, folder: Path, calibration: Tensor | None = None) -> None:
    """Write dense.onnx and, in 8-bit integers by onnxruntime's own quantization, int8.onnx.

    Args:
        model: with ordinary layers.
        example: inputs [2 or more, ...].
        calibration: inputs [B, ...] by which activations are rounded once for all (static quantization); without
            them by the values of each call (dynamic).
    """
    dense, integers = folder / "dense.onnx", folder / "int8.onnx"
    onnx.write(model, {}, example, dense)
    if calibration is None:
        quantize_dynamic(dense, integers)
        return
    quant_pre_process(dense, folder / "ready.onnx")
    quantize_static(
        folder / "ready.onnx",
        integers,
        _Samples(calibration),
        per_channel=True,
        activation_type=QuantType.QUInt8,  # with signed ones onnxruntime is slower than in float
    )


def read(folder: Path, name: str) -> Run:
    """A file of this name in onnxruntime, on as many threads as torch uses."""
    return onnx.read(folder / f"{name}.onnx", options=SLEEPING)
