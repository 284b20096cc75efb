"""The one front door: a dense layer and a wish for its size to a factorized layer, or why it stays dense."""

from torch import nn

from compresskd.tt.conv import TTConv2d, stage_dims
from compresskd.tt.cores import clip_ranks, num_parameters
from compresskd.tt.decompose import tt_svd
from compresskd.tt.linear import TTLinear
from compresskd.tt.skipped import Skipped


def factorize(module: nn.Module, *, rank: int) -> nn.Module | Skipped:
    """The layer in tensor-train format with every bond at most `rank`, or why it stays dense.

    Raises:
        TypeError: `module` is of a type that has no factorized form.
        ValueError: `rank` is below 1, or the weight is not finite.
    """
    if rank < 1:
        raise ValueError(f"expected rank >= 1, got {rank}")
    if isinstance(module, nn.Linear):
        return _linear(module, rank)
    if isinstance(module, nn.Conv2d):
        return _conv(module, rank)
    raise TypeError(f"expected nn.Linear or nn.Conv2d, got {type(module).__name__}")


def _check_finite(module: nn.Linear | nn.Conv2d) -> None:
    if not bool(module.weight.isfinite().all()):
        raise ValueError("expected finite weights, got NaN or infinity: check the checkpoint or the training")


def _break_even(count: int, ranks: tuple[int, ...], dense: int) -> Skipped:
    return Skipped(f"break-even: {count} parameters at rank {max(ranks)}, {dense} dense")


def _linear(module: nn.Linear, rank: int) -> nn.Module | Skipped:
    _check_finite(module)
    input_dims, output_dims = (1, module.in_features), (module.out_features, 1)
    ranks = clip_ranks([rank], input_dims, output_dims)
    count = num_parameters(input_dims, output_dims, ranks)
    if count >= module.weight.numel():
        return _break_even(count, ranks, module.weight.numel())
    cores = tt_svd(module.weight, input_dims, output_dims, ranks)
    return TTLinear.from_cores(
        cores, module.bias, in_features=module.in_features, out_features=module.out_features
    )


def _conv(module: nn.Conv2d, rank: int) -> nn.Module | Skipped:
    if module.groups != 1:
        return Skipped(f"groups={module.groups}: no tensor-train form of a grouped convolution")
    _check_finite(module)
    kh, kw = module.kernel_size
    stages = [(1, 1), (1, 1)] if kh * kw == 1 else [(1, 1), (kh, kw), (1, 1)]
    input_dims, output_dims = stage_dims(stages, module.in_channels, module.out_channels)
    ranks = clip_ranks([rank] * (len(stages) - 1), input_dims, output_dims)
    count = num_parameters(input_dims, output_dims, ranks)
    if count >= module.weight.numel():
        return _break_even(count, ranks, module.weight.numel())
    cores = tt_svd(module.weight.reshape(module.out_channels, -1), input_dims, output_dims, ranks)
    return TTConv2d.from_cores(cores, module, stages)
