"""Mixed precision by autocast: `fp32`, `bf16`, `fp16`."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError where `device` cannot train or score at `precision`."""
    if precision not in DTYPES:
        raise ValueError(f"precision: came {precision!r}; allowed: {', '.join(DTYPES)}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"precision: came 'fp16' on device {device}; fp16 needs an NVIDIA or AMD GPU (device=cuda). "
            "Write precision=bf16 or precision=fp32"
        )
    if (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ValueError(
            f"precision: came 'bf16', which {torch.cuda.get_device_name(device)} does not compute. "
            "Write precision=fp16 or precision=fp32"
        )


def check_compile(compile: bool, device: torch.device) -> None:
    """Raise ValueError where `torch.compile` cannot work, before a step fails deep inside it."""
    compilers = [os.environ.get("CXX", ""), "g++", "c++", "clang++", "cl"]
    if compile and device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ValueError(
            "train.compile: came true, but torch.compile on the CPU needs a C++ compiler and none was found "
            "(g++, clang++, or the one that CXX names). Write train.compile=false or install one"
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context for forward and loss; it may be entered any number of times, one after the other."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Loss scaling for fp16, whose gradients underflow; None for the others."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None
