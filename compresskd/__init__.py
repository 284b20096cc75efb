"""Small neural networks by knowledge distillation, tensor-train compression and quantization-aware training."""

from compresskd.version import __version__ as __version__


def __getattr__(name: str):
    """`compresskd.load`, which brings PyTorch with it: only where it is asked for."""
    if name == "load":
        from compresskd.artifact import load

        return load
    raise AttributeError(f"module 'compresskd' has no attribute {name!r}")
