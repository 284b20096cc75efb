"""The plain architecture, with every factorized layer multiplied out to an ordinary one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskd import artifact, layers
from compresskd.artifact import folder
from compresskd.export.errors import ExportError
from compresskd.layers import surgery
from compresskd.models.build import build, spec_of
from compresskd.models.folded import FoldedBatchNorm
from compresskd.quant.activation import CHILD, ActivationQuant, quantize_input


def fold(model: nn.Module, *, float_inputs: bool = False) -> nn.Module:
    """A fresh network of the same values with ordinary layers only, in evaluation mode.

    Args:
        model: as it comes from a file.
        float_inputs: leave out the rounding of inputs, which is else attached to the same layers.

    Raises:
        ExportError: the architecture makes factorized layers by itself and does not say what its dense form is.
    """
    spec = _plain_spec(model)
    plain = build(spec["target"], spec["kwargs"], seed=0)
    if surgery.structure(plain):
        raise ExportError(
            f"{spec['target']} is made of factorized layers and has no dense form; give it a method "
            "dense_architecture() that returns the target and kwargs of one with the same names of layers"
        )
    plain.load_state_dict(_dense_state(model, plain))
    for name, layer in [] if float_inputs else list(model.named_modules()):
        quant = getattr(layer, CHILD, None)
        if isinstance(quant, ActivationQuant):
            quantize_input(plain.get_submodule(name), copy.deepcopy(quant))
    return plain.eval()


def write(model: nn.Module, about: Mapping[str, Any], path: Path) -> None:
    """Write the network into an existing folder, as `compresskd.load` reads it."""
    folder.write(artifact.content_of(model, about), path)


def _plain_spec(model: nn.Module) -> dict[str, Any]:
    own: Any = getattr(model, "dense_architecture", None)
    return spec_of(model) if own is None else own()


def _dense_state(model: nn.Module, plain: nn.Module) -> dict[str, Tensor]:
    structured = {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if name and isinstance(layer, surgery.Structured)
    }
    state = {
        name: value
        for name, value in model.state_dict().items()
        if CHILD not in name.split(".") and not any(name.startswith(f"{layer}.") for layer in structured)
    }
    for name, layer in structured.items():
        ordinary = plain.get_submodule(name)
        values = _dense_values(name, layer, ordinary)
        if parametrize.is_parametrized(ordinary):
            state |= _parametrized(name, ordinary, values)
        else:
            state |= {f"{name}.{key}": value.detach() for key, value in values.items()}
    return state


@torch.no_grad()
def _parametrized(name: str, ordinary: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a parametrized layer that reads as these values, where its parametrization can be assigned to."""
    for key, value in values.items():
        try:
            if parametrize.is_parametrized(ordinary, key):
                setattr(ordinary, key, value.detach())
            else:
                getattr(ordinary, key).copy_(value)
            same = torch.allclose(getattr(ordinary, key), value, rtol=1e-5, atol=1e-7)
        except (RuntimeError, NotImplementedError, AttributeError):
            same = False
        if not same:
            raise ExportError(
                f"'{name}' has a parametrized {key}, to which no value can be assigned; export the factorized model"
            )
    return {f"{name}.{key}": value.clone() for key, value in ordinary.state_dict().items()}


def _dense_values(name: str, layer: Any, ordinary: Any) -> dict[str, Tensor]:
    """What the ordinary layer holds to do the same."""
    if isinstance(layer, FoldedBatchNorm):
        return {
            **ordinary.state_dict(),
            "weight": torch.ones_like(ordinary.weight) if layer.scale is None else layer.scale,
            "bias": torch.zeros_like(ordinary.bias) if layer.bias is None else layer.bias,
            "running_mean": torch.zeros_like(ordinary.running_mean),
            "running_var": torch.ones_like(ordinary.running_var) - ordinary.eps,
        }
    if not hasattr(layer, "to_dense"):
        raise ExportError(f"'{name}' ({type(layer).__name__}) has no dense form: it has no method to_dense()")
    weight = layers.held_by(ordinary, layer.to_dense())
    if weight is None:
        kind = type(ordinary).__name__
        raise ExportError(
            f"'{name}' stood for {kind}, which computes its weight; export the factorized model"
        )
    values = {"weight": weight}
    return values if getattr(layer, "bias", None) is None else {**values, "bias": layer.bias}
