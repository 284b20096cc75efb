"""Small neural networks by knowledge distillation, tensor-train compression and quantization-aware training."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`compresskd.load`, which brings PyTorch with it: only where it is asked for."""
    if name == "load":
        from compresskd.artifact import load

        return load
    raise AttributeError(f"module 'compresskd' has no attribute {name!r}")
