"""What a model costs: parameters and latency. Multiply-accumulates are counted in `macs`, bytes by the artifact."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from compresskd import tt
from compresskd.quant.activation import ActivationQuant
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.tasks import Inputs, call, map_inputs, tensors_of
from compresskd.training.evaluation import evaluation_mode

BATCH_SIZES = (1, 32)  # that are timed
_ROUNDS = 5, 200  # of which a median is taken: no fewer, and more say no more


def num_parameters(model: nn.Module) -> int:
    """Number of scalars among the parameters; tied ones count once, scales that quantizers learn do not.

    It is the number of the same model read from its file, where a scale belongs to the integers.
    """
    quantizers = [m for m in model.modules() if isinstance(m, FakeQuant | ActivationQuant)]
    scales = {parameter for quantizer in quantizers for parameter in quantizer.parameters()}
    return sum(p.numel() for p in model.parameters() if p not in scales)


def latency(
    models: Mapping[str, nn.Module],
    example: Inputs,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 0.2,
) -> dict[str, dict[str, float]]:
    """Median forward time in milliseconds, the models timed in turn so that a drifting machine is fair to all.

    Factorized layers run by measured plans, as those of a loaded model do.

    Args:
        models: name to module.
        example: [1, ...] one input on the device that is measured.
        batch_sizes: the batches timed.
        seconds: to spend on each batch size, over all models, at most; but for 5 rounds, where they take longer.

    Returns:
        {model name: {"batch_1": milliseconds, ...}}.
    """
    result: dict[str, dict[str, float]] = {name: {} for name in models}
    with contextlib.ExitStack() as stack:
        stack.enter_context(tt.plans(tt.MEASURED))
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        for batch_size in batch_sizes:
            batch = _repeated(example, batch_size)
            for name, times in _interleaved(models, batch, seconds).items():
                result[name][f"batch_{batch_size}"] = 1e3 * statistics.median(times)
    return result


def _repeated(example: Inputs, times: int) -> Inputs:
    return map_inputs(lambda tensor: tensor.expand(times, *tensor.shape[1:]).contiguous(), example)


def _interleaved(models: Mapping[str, nn.Module], batch: Inputs, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for model in models.values():
            for _ in range(2):  # warm caches, plans and allocators
                call(model, batch)
        start = time.perf_counter()
        least, most = _ROUNDS
        for number in range(most):
            if number >= least and time.perf_counter() - start > seconds:
                break
            for name, model in models.items():
                times[name].append(_timed(model, batch))
    return times


def _timed(model: nn.Module, batch: Inputs) -> float:
    start = time.perf_counter()
    call(model, batch)
    device = next(tensors_of(batch)).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
