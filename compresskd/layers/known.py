"""Classes of other packages whose computation is known, by path: nothing is imported to recognise them.

A row may be added where the class computes, for any input, in training and in evaluation, what the plain layer that
`as_plain` makes of it computes; the trial in the model shows where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Form:
    """How a class holds the weight of a plain layer.

    Attributes:
        as_plain: from a layer to the plain one that computes the same; None where the class is a subclass of one whose
            forward is the same.
        as_held: from the weight of that plain layer to the parameter that the class would hold; None where there is
            none, as its weight is computed from others.
        output_dim: of that parameter, the dimension of the outputs.
    """

    as_plain: Callable[[Any], nn.Module] | None = None
    as_held: Callable[[Tensor], Tensor] | None = None
    output_dim: int = 0


def known(cls: type[nn.Module]) -> Form | None:
    """The form of a class that is listed here."""
    return _FORMS.get(f"{cls.__module__}.{cls.__qualname__}")


def scale_of(module: nn.Module) -> float | None:
    """By how much a known embedding multiplies its rows; None where it is no such embedding."""
    cls = parametrize.type_before_parametrizations(module)
    if not _SCALED.fullmatch(f"{cls.__module__}.{cls.__qualname__}") or not isinstance(module, nn.Embedding):
        return None
    scale = getattr(module, "embed_scale", None)
    return None if scale is None else float(scale)


def _transposed(layer: Any) -> nn.Linear:
    linear = nn.Linear(*layer.weight.shape, bias=False, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t(), requires_grad=layer.weight.requires_grad)
    linear.bias = layer.bias
    return linear.train(layer.training)


def _standardized(layer: Any) -> nn.Conv2d:
    """With the weight that its forward computes: each output's of mean 0 and variance 1, times a learned gain."""
    gain = (layer.gain * layer.scale).view(-1) if hasattr(layer, "gain") else None
    rows = layer.weight.reshape(1, layer.out_channels, -1)
    weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps)
    convolution = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=False,
        device="meta",
    )
    convolution.weight = nn.Parameter(weight.reshape_as(layer.weight).detach())
    convolution.bias = layer.bias
    return convolution.train(layer.training)


_SAME = Form()
_FORMS = {
    "transformers.pytorch_utils.Conv1D": Form(_transposed, Tensor.t, output_dim=1),
    "transformers.models.falcon.modeling_falcon.FalconLinear": _SAME,
    "timm.layers.linear.Linear": _SAME,
    "timm.layers.std_conv.StdConv2d": Form(_standardized),
    "timm.layers.std_conv.ScaledStdConv2d": Form(_standardized),
}
# BART's, Gemma's and their relatives': `super().forward(ids) * self.embed_scale`
_SCALED = re.compile(r"transformers\.models\.\w+\.modeling_\w+\.\w*ScaledWordEmbedding")
