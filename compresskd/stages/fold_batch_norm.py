"""Fold batch norms into the layers before them, so that fewer numbers are kept; exact in evaluation mode."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers, tt
from compresskd.layers import surgery
from compresskd.models.folded import FoldedBatchNorm
from compresskd.options import OptionError
from compresskd.tasks import Inputs, call, logits_of
from compresskd.training.evaluation import evaluation_mode

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_FOLDED = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)  # a subclass may do more: timm's apply an activation
_TOLERANCE = 1e-3  # of the largest logit: float32 through deep networks


@dataclass(frozen=True)
class _Output:
    """What a layer returned: kept, so that nothing else gets its identity."""

    layer: str
    tensor: Tensor
    version: int


def fold_batch_norms(model: nn.Module, example: Inputs) -> int:
    """Replace every batch norm of `model` by a `FoldedBatchNorm`, in place; the number of those replaced.

    A subclass of PyTorch's batch norms stays as it is.

    The scale goes into the weights of the convolution or linear layer whose output the norm alone takes, as it is
    (of a tensor train: into the last core), the shift into its bias where it has one. Other norms keep both as
    vectors.

    Args:
        example: [B, ...] inputs, for one pass that shows which layer feeds which norm.

    Raises:
        ValueError: the network does not answer the same afterwards; it is unchanged then.
    """
    folded = copy.deepcopy(model)
    norms = {n: m for n, m in folded.named_modules() if type(m) in _FOLDED and m.running_var is not None}
    feeding = _feeding(folded, norms, example)
    for name, norm in norms.items():
        before = folded.get_submodule(feeding[name]) if name in feeding else None
        surgery.put(folded, norm, _fold(norm, before).train(norm.training))
    _check_same(model, folded, example)
    for name in norms:
        surgery.put(model, model.get_submodule(name), folded.get_submodule(name))
    with torch.no_grad():
        for name in set(feeding.values()):
            own, new = model.get_submodule(name), folded.get_submodule(name)
            own.load_state_dict(new.state_dict())
    return len(norms)


def with_statistics(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose batch norms have random statistics: one on which wrong folding shows."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BATCH_NORM) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model


def _feeding(model: nn.Module, norms: Mapping[str, nn.Module], example: Inputs) -> dict[str, str]:
    """By norm, the layer whose output it takes as it is, where each runs once in a pass."""
    outputs: dict[int, _Output] = {}
    found: dict[str, list[str | None]] = {name: [] for name in norms}
    runs: dict[str, int] = {}

    def watch_layer(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            outputs[id(output)] = _Output(name, output, output._version)

        return hook

    def watch_norm(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            came = outputs.get(id(args[0]))
            found[name].append(came.layer if came and came.version == args[0]._version else None)

        return hook

    scaled = _scalable(model)
    with ExitStack() as stack, evaluation_mode(model), torch.no_grad():
        for name, module in model.named_modules():
            if name in norms:
                handle = module.register_forward_pre_hook(watch_norm(name))
            elif name in scaled:
                handle = module.register_forward_hook(watch_layer(name))
            else:
                continue
            stack.callback(handle.remove)
        call(model, example)
    once = {name: layers[0] for name, layers in found.items() if len(layers) == 1}
    feeding = {name: layer for name, layer in once.items() if layer is not None and runs[layer] == 1}
    if _read_by_norms_only(model, feeding, example):
        return feeding
    return {
        name: layer for name, layer in feeding.items() if _read_by_norms_only(model, {name: layer}, example)
    }


def _scalable(model: nn.Module) -> set[str]:
    """Layers whose output scales with their own weight: known ones, not tied to others, not parametrized."""
    return {
        layer.name
        for layer in layers.find(model)
        if layer.obstacle is None
        and len(layer.members) == 1
        and (isinstance(layer.module, tt.TTConv2d) or type(layer.module) in (nn.Linear, nn.Conv1d, nn.Conv2d))
    }


def _read_by_norms_only(model: nn.Module, feeding: Mapping[str, str], example: Inputs) -> bool:
    """Whether nothing but the norm reads each layer's output: doubled behind the layer and halved before the norm,
    which is exact in floating point, it leaves every logit as it was. An output of zeros alone would show nothing."""
    shown: list[bool] = []

    def double(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        shown.append(bool(output.any()))
        return 2 * output

    with ExitStack() as stack, evaluation_mode(model), torch.no_grad():
        before = logits_of(call(model, example))
        for norm, layer in feeding.items():
            doubled = model.get_submodule(layer).register_forward_hook(double)
            halved = model.get_submodule(norm).register_forward_pre_hook(_halve)
            stack.callback(doubled.remove)
            stack.callback(halved.remove)
        return torch.equal(logits_of(call(model, example)), before) and all(shown)


def _halve(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0] / 2,)


@torch.no_grad()
def _fold(norm: Any, before: Any) -> FoldedBatchNorm:
    scale, shift = _affine(norm)
    if before is None:
        left = FoldedBatchNorm(norm.num_features)
        assert left.scale is not None
        left.scale.copy_(scale)
    else:
        weight = before.cores[-1] if isinstance(before, tt.TTConv2d) else before.weight
        dim = 1 if isinstance(before, tt.TTConv2d) else 0
        weight.mul_(scale.to(weight.dtype).view([-1 if d == dim else 1 for d in range(weight.dim())]))
        left = FoldedBatchNorm(norm.num_features, scale=False, bias=before.bias is None)
        if before.bias is not None:
            before.bias.copy_(before.bias * scale + shift)
    if left.bias is not None:
        left.bias.copy_(shift)
    return left.to(norm.running_var)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] in float64 of a batch norm in evaluation mode."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return scale, shift


def _check_same(model: nn.Module, folded: nn.Module, example: Inputs) -> None:
    with evaluation_mode(model), evaluation_mode(folded), torch.no_grad():
        before, after = (logits_of(call(each, example)).float() for each in (model, folded))
    gap = float((before - after).abs().max() / before.abs().max().clamp(min=1e-6))
    if not gap <= _TOLERANCE:
        expected = (
            f"freeze, keep: this model answers differently with its norms folded (by {gap:.2g} of a logit)"
        )
        raise OptionError("batch_norm", "fold", expected)
