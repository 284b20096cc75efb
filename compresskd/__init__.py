"""Small neural networks by knowledge distillation, tensor-train compression and quantization-aware training.

Each name below is loaded when it is first asked for, and PyTorch with those that need it. Ten lines of a notebook that
use most of them are the example of `compresskd.api`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compresskd.version import __version__ as __version__

if TYPE_CHECKING:
    from compresskd.api.comparison import compare_compression_strategies as compare_compression_strategies
    from compresskd.api.functions import compress as compress
    from compresskd.api.functions import distill as distill
    from compresskd.api.functions import quantize as quantize
    from compresskd.api.functions import train as train
    from compresskd.api.names import LogitsDistillationLoss as LogitsDistillationLoss
    from compresskd.api.names import TensorizedLinear as TensorizedLinear
    from compresskd.api.names import convert_to_qat as convert_to_qat
    from compresskd.api.names import convert_to_tensor_train as convert_to_tensor_train
    from compresskd.api.names import create_tt_student as create_tt_student
    from compresskd.api.runs import Run as Run
    from compresskd.api.runs import results as results
    from compresskd.artifact import load as load


__all__ = [
    "LogitsDistillationLoss",
    "Run",
    "TensorizedLinear",
    "__version__",
    "compare_compression_strategies",
    "compress",
    "convert_to_qat",
    "convert_to_tensor_train",
    "create_tt_student",
    "distill",
    "load",
    "quantize",
    "results",
    "train",
]
_ELSEWHERE = {
    "load": "artifact",
    "Run": "api.runs",
    "results": "api.runs",
    "train": "api.functions",
    "distill": "api.functions",
    "compress": "api.functions",
    "quantize": "api.functions",
    "compare_compression_strategies": "api.comparison",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'compresskd' has no attribute {name!r}")
    return getattr(import_module(f"compresskd.{_ELSEWHERE.get(name, 'api.names')}"), name)


def __dir__() -> list[str]:
    return list(__all__)
