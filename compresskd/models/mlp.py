"""Multi-layer perceptron of any widths; LeNet-300-100 is the one with `hidden=[300, 100]`."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.models.checks import Classes, Shape
from compresskd.options import Count, checked, one_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": F.tanh,
    "leaky_relu": F.leaky_relu,
}
Activation = Annotated[str, one_of(*ACTIVATIONS)]


@checked
class MLP(nn.Module):
    """Linear layers `fc1 .. fcN` with an activation after each but the last.

    LeNet-300-100 (LeCun et al., "Gradient-based learning applied to document recognition", 1998) has 266,610
    parameters on 28x28 images with `hidden=[300, 100]`.

    Args:
        hidden: widths of the hidden layers; an empty list gives a linear classifier.
        activation: one of `relu`, `gelu`, `silu`, `tanh`, `leaky_relu`.
        bias: whether layers add one.
        num_classes: width of the last layer.
        input_shape: shape of one sample, any number of dimensions: inputs are flattened here.

    Raises:
        OptionError: a width, activation, class count or shape that cannot be.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[Count] = (256, 256),
        activation: Activation = "relu",
        bias: bool = True,
        num_classes: Classes,
        input_shape: Shape,
    ) -> None:
        super().__init__()
        widths = [prod(input_shape), *hidden, num_classes]
        self.activation = ACTIVATIONS[activation]
        self.num_layers = len(widths) - 1
        for number, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
            self.add_module(f"fc{number}", nn.Linear(fan_in, fan_out, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, *input_shape]` to logits `[B, num_classes]`."""
        x = x.flatten(1)
        for number in range(1, self.num_layers):
            x = self.activation(self.get_submodule(f"fc{number}")(x))
        return self.get_submodule(f"fc{self.num_layers}")(x)
