"""The ONNX form: a graph that onnxruntime and others run, quantized tensors in it as integers.

Constant folding would turn the integers back into floats, so while the graph is simplified the quantized tensors
are inputs of it, which nothing can fold; only then are they put in as integers (see `qdq`).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.export.agreement import Run
from compresskd.export.errors import ExportError
from compresskd.export.rounding import rounding_as_operators
from compresskd.export.shapes import arguments, dynamic_shapes
from compresskd.quant.pack import QuantizedTensor
from compresskd.tasks import Inputs

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 21  # the first in which DequantizeLinear reads 4-bit integers
UNPACK_AT_LOAD = {"session.disable_quant_qdq": "1"}


def require_packages() -> None:
    """Raise ExportError where a package of the extra is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--to onnx needs {', '.join(missing)}, which is not installed; write: pip install 'compresskd[export]'"
        )


def write(
    model: nn.Module, quantized: Mapping[str, QuantizedTensor], example: Inputs, path: Path
) -> dict[str, str]:
    """Write the model, in evaluation mode, with a dynamic first dimension, and second of tokens.

    Args:
        model: ordinary parameters; its `ActivationQuant` children become QuantizeLinear and DequantizeLinear.
        quantized: integers of parameters and buffers by name.
        example: B samples, 2 or more.
        path: of the file.

    Returns:
        The ONNX type of every quantized tensor by name.
    """
    import onnx_ir as ir
    from onnxscript import optimizer

    from compresskd.export import qdq

    graph_model = _graph_of(model, example)
    tied = {name: value for name, value in _tied(graph_model.graph).items() if name not in quantized}
    qdq.hold_out(graph_model.graph, [*quantized, *tied])
    optimizer.optimize(graph_model)
    _put_back(graph_model.graph, tied)
    types = qdq.put_in(graph_model, quantized)
    ir.save(graph_model, path)
    return types


def _tied(graph: Any) -> dict[str, Any]:
    """The values of matrices that are read in several places: folded, each place would have a copy in its layout."""
    return {
        name: value.const_value
        for name, value in graph.initializers.items()
        if len(value.uses()) > 1 and len(value.shape) > 1
    }


def _put_back(graph: Any, values: Mapping[str, Any]) -> None:
    for value in [value for value in graph.inputs if value.name in values]:
        graph.inputs.remove(value)
        value.const_value = values[value.name]
        graph.register_initializer(value)


def read(path: Path, *, options: Mapping[str, str] | None = None) -> Run:
    """The file in onnxruntime, on as many threads as torch uses; `options` are configuration entries of the session."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    taken = {value.name for value in session.get_inputs()}

    def run(inputs: Inputs) -> Tensor:
        named = {"input": inputs} if isinstance(inputs, Tensor) else inputs
        # what a model does not use is no input of its graph
        (logits,) = session.run(["logits"], {name: x.numpy() for name, x in named.items() if name in taken})
        return torch.from_numpy(logits)

    return run


def _graph_of(model: nn.Module, example: Inputs) -> Any:
    args, kwargs = arguments(example)
    with torch.no_grad(), _quiet(), rounding_as_operators(model):
        program = torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes(example),
            input_names=list(kwargs) or ["input"],
            output_names=["logits"],
        )
    assert program is not None
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself and about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
