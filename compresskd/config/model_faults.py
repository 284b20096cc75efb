"""Whether a model, as built, fits the data and can be trained, stored and read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compresskd.config.faults import Fault

Plain = Mapping[str, Any]


def misfits(
    role: str, node: Plain, model: nn.Module, example: torch.Tensor, num_classes: int
) -> Iterator[Fault]:
    """The first fault of a model: its parameters, or what it answers on two samples and on one.

    Args:
        role: its key, teacher or student.
        node: its options.
        example: [2, ...] inputs of the shape of the data.
    """
    text = _unfit_tensors(model)
    if text:
        yield Fault(role, text)
        return
    for inputs in (example, example[:1]):  # the last batch of a split, and what is timed, may be one sample
        fault = _misfit(role, node, model, inputs, num_classes)
        if fault:
            yield fault
            return


def _unfit_tensors(model: nn.Module) -> str:
    """What is wrong with the parameters of a model; empty where they are ordinary ones."""
    for name, parameter in model.named_parameters():
        if (parameter.is_floating_point() or parameter.is_complex()) and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            return f"{name} is {kind}; allowed: float32 parameters; write precision=bf16 or fp16 for half precision"
    return ""


def _misfit(role: str, node: Plain, model: nn.Module, inputs: torch.Tensor, num_classes: int) -> Fault | None:
    count = len(inputs)
    try:
        with torch.inference_mode():
            logits = model.eval()(inputs)
    except Exception as error:  # a model may be the user's own code
        text = str(error).partition("\n")[0]
        return Fault(
            role, f"does not take {count} inputs of shape {list(inputs.shape[1:])}, as data has them: {text}"
        )
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != count:
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        return Fault(role, f"returns {shape} for {_samples(count)}; expected logits [{count}, {num_classes}]")
    if logits.shape[1] != num_classes:
        key = f"{role}.num_classes" if "num_classes" in node else role
        return Fault(key, f"came {logits.shape[1]} classes; allowed: {num_classes}, as many as the data has")
    return None


def _samples(count: int) -> str:
    return f"{count} samples" if count > 1 else "1 sample"
