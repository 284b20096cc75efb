"""A multi-layer perceptron born in tensor-train format, its layers given by modes and ranks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compresskd.models.checks import Classes, Shape
from compresskd.models.mlp import ACTIVATIONS, Activation
from compresskd.options import OptionError, checked
from compresskd.tt import TTLinear

_KEYS = ("input_dims", "output_dims", "tt_rank")


@checked
class TTMLP(nn.Module):
    """Layers `fc1 .. fcN` in tensor-train format with an activation after each but the last.

    "Tensorizing neural networks" (Novikov et al. 2015, arXiv:1509.06569) calls such a layer a TT-layer.

    Args:
        layers: one mapping a layer with `input_dims` and `output_dims` (modes, equally many) and `tt_rank` (cap on
            every TT-rank). The first layer's input modes must multiply to at least the input size (zeros fill up), the
            last one's output modes to at least `num_classes` (the rest is cut); between layers they must agree.
        activation: one of `relu`, `gelu`, `silu`, `tanh`, `leaky_relu`.
        num_classes: number of logits.
        input_shape: shape of one sample; inputs are flattened here.

    Raises:
        OptionError: modes that do not fit, an unknown or missing key, an unknown activation.
    """

    def __init__(
        self,
        *,
        layers: Sequence[Mapping[str, Any]],
        activation: Activation = "relu",
        num_classes: Classes,
        input_shape: Shape,
    ) -> None:
        super().__init__()
        widths = _widths(layers, math.prod(input_shape), num_classes)
        self._dense = {"activation": activation, "num_classes": num_classes, "input_shape": list(input_shape)}
        self.activation = ACTIVATIONS[activation]
        self.num_layers = len(layers)
        for number, layer in enumerate(layers, start=1):
            linear = TTLinear(
                layer["input_dims"],
                layer["output_dims"],
                layer["tt_rank"],
                in_features=widths[number - 1],
                out_features=widths[number],
            )
            self.add_module(f"fc{number}", linear)

    def dense_architecture(self) -> dict[str, Any]:
        """Target and keywords of the perceptron whose dense layers have the names and sizes of these."""
        hidden = [self.get_submodule(f"fc{number}").out_features for number in range(1, self.num_layers)]
        return {"target": "compresskd.models.mlp.MLP", "kwargs": {"hidden": hidden, **self._dense}}

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, *input_shape]` to logits `[B, num_classes]`."""
        x = x.flatten(1)
        for number in range(1, self.num_layers):
            x = self.activation(self.get_submodule(f"fc{number}")(x))
        return self.get_submodule(f"fc{self.num_layers}")(x)


def _widths(layers: Sequence[Mapping[str, Any]], num_inputs: int, num_classes: int) -> list[int]:
    """Features before and after each layer; OptionError where modes do not fit each other."""
    if not layers:
        raise OptionError("layers", [], "at least one {input_dims, output_dims, tt_rank}")
    for number, layer in enumerate(layers, start=1):
        if set(layer) != set(_KEYS):
            raise OptionError(f"layers[{number - 1}]", dict(layer), f"the keys {', '.join(_KEYS)}")
        if len(layer["input_dims"]) != len(layer["output_dims"]):
            raise OptionError(f"layers[{number - 1}]", dict(layer), "as many input_dims as output_dims")
        if not isinstance(layer["tt_rank"], int) or layer["tt_rank"] < 1:
            raise OptionError(f"layers[{number - 1}].tt_rank", layer["tt_rank"], ">= 1")
    widths = [num_inputs, *(math.prod(layer["output_dims"]) for layer in layers)]
    for number, (width, layer) in enumerate(zip(widths, layers, strict=False), start=1):
        offered = math.prod(layer["input_dims"])
        if offered < width or (number > 1 and offered != width):
            expected = f"modes that multiply to {width}, as many features as come in, not to {offered}"
            raise OptionError(f"layers[{number - 1}].input_dims", layer["input_dims"], expected)
    if widths[-1] < num_classes:
        expected = f"modes that multiply to {num_classes} or more, the number of classes, not to {widths[-1]}"
        raise OptionError(f"layers[{len(layers) - 1}].output_dims", layers[-1]["output_dims"], expected)
    return [*widths[:-1], num_classes]
