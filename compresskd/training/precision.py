"""Mixed precision by autocast: `fp32`, `bf16`, `fp16`."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch

from compresskd.options import OptionError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(name: str, precision: str) -> torch.device:
    """The device that `name` stands for. Raises OptionError where this machine does not have it, for `precision`."""
    num_there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    best = "cuda" if num_there["cuda"] else "cpu"
    kind, _, index = (best if name == "auto" else name).partition(":")
    if kind not in num_there or not (index.isdigit() or ":" not in name):
        raise OptionError("device", name, "auto, cpu, cuda, cuda:N, mps")
    if int(index or 0) >= num_there[kind]:
        here = [k if count == 1 else f"{k}:0 to {k}:{count - 1}" for k, count in num_there.items() if count]
        raise OptionError("device", name, f"what this machine has: {', '.join(['auto', *here])}")
    device = torch.device(f"{kind}:{index}" if index else kind)
    if precision in ("bf16", "fp16"):  # unknown ones are named by the recipe
        check_precision(precision, device)
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Raise OptionError where `device` cannot train or score at `precision`."""
    if precision not in DTYPES:
        raise OptionError("precision", precision, ", ".join(DTYPES))
    if precision == "fp16" and device.type != "cuda":
        raise OptionError("precision", precision, f"bf16 or fp32 on device {device}: fp16 needs device=cuda")
    if (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        expected = f"fp16 or fp32: {torch.cuda.get_device_name(device)} does not compute it"
        raise OptionError("precision", precision, expected)


def check_compile(compile: bool, device: torch.device) -> None:
    """Raise OptionError where `torch.compile` cannot work, before a step fails deep inside it."""
    compilers = [os.environ.get("CXX", ""), "g++", "c++", "clang++", "cl"]
    if compile and device.type == "cpu" and not any(map(shutil.which, compilers)):
        expected = (
            "false: no C++ compiler was found (g++, clang++, or the one that CXX names); or install one"
        )
        raise OptionError("compile", True, expected)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context for forward and loss; it may be entered any number of times, one after the other."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Loss scaling for fp16, whose gradients underflow; None for the others."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None
