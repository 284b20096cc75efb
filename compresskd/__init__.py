"""Small neural networks by knowledge distillation, tensor-train compression and quantization-aware training."""

__version__ = "0.1.0"
