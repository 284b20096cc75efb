"""Small neural networks by knowledge distillation, tensor-train compression and quantization-aware training.

Each name is loaded when it is first asked for, and PyTorch with those that need it. Several epochs of training, a
compression and a comparison in ten lines:

>>> import torch, compresskd
>>> x, y = torch.randn(400, 16), torch.arange(400) % 4
>>> x[:, :4] += 4 * torch.eye(4)[y]  # four classes that can be told apart
>>> train, validation = (x[:320], y[:320]), (x[320:], y[320:])
>>> teacher = compresskd.train(torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(),
...     torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)), train, validation, epochs=3)
>>> small = compresskd.compress(teacher, x[:32], rank=4, exclude=["4"])
>>> small = compresskd.distill(small, teacher, train, validation, epochs=3)
>>> table = compresskd.compare_compression_strategies(teacher, train, validation, rank=4, epochs=2,
...     strategies=["train", "compress", "distill_to_compressed"])

The table is a pandas DataFrame where pandas is installed, else a list of rows; here of the teacher and strategies.

>>> len(table)
4

A layer in tensor-train format is given by its modes, whose products are its sizes, and its rank:

>>> layer = compresskd.TensorizedLinear(input_dims=[4, 8], output_dims=[8, 4], tt_rank=4)
>>> layer(torch.randn(2, 32)).shape
torch.Size([2, 32])

Runs on disk are read by `results`, `Run` and `load`.
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
