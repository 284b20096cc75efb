"""LeNet-5 as the compression literature means it: Caffe's variant with 431,080 parameters on 28x28 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.models.checks import Classes, Shape, image_shape
from compresskd.options import Positive, Whole, checked

KERNEL = 5


@checked
class LeNet5(nn.Module):
    """Two 5x5 convolutions (20 and 50 channels), each max-pooled by two, then 500 hidden units.

    LeCun et al., "Gradient-based learning applied to document recognition" (1998), in the widths of Caffe's
    `lenet_train_test.prototxt`, which Han et al., "Deep compression" (2016) and their successors compress.
    A ReLU follows the convolutions too, which Caffe's file leaves out: it adds no parameter. It stands behind the
    pooling, with which it commutes, and has a quarter of the values to look at there.

    Args:
        width_multiplier: factor on the 20, 50 and 500 units; may be a fraction such as 0.5.
        padding: zeros around the input of each convolution: 0 as published, 2 for images under 16x16.
        bias: whether layers add one. The 580 biases are 0.13% of the dense model, but not of one a thousand times
            smaller.
        num_classes: number of logits.
        input_shape: `[C, H, W]`, at least 16x16 with padding 0 (4x4 with padding 2).

    Raises:
        ValueError: an argument that cannot be, or an image too small for the kernels.
    """

    def __init__(
        self,
        *,
        width_multiplier: Positive = 1.0,
        padding: Whole = 0,
        bias: bool = True,
        num_classes: Classes,
        input_shape: Shape,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(
            input_shape,
            architecture=f"LeNet5 with padding {padding}",
            minimum=_smallest_image(padding),
            instead="`padding: 2` or another model",
        )
        first, second, hidden = (max(1, round(units * width_multiplier)) for units in (20, 50, 500))
        self.conv1 = nn.Conv2d(channels, first, KERNEL, padding=padding, bias=bias)
        self.conv2 = nn.Conv2d(first, second, KERNEL, padding=padding, bias=bias)
        num_inputs = second * _size_after(height, padding) * _size_after(width, padding)
        self.fc1 = nn.Linear(num_inputs, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, num_classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def _size_after(size: int, padding: int) -> int:
    """Height or width in pixels after both convolutions and poolings (at most 0 where nothing is left)."""
    for _ in range(2):
        size = (size + 2 * padding - KERNEL + 1) // 2
    return size


def _smallest_image(padding: int) -> int:
    size = 1
    while _size_after(size, padding) < 1:
        size += 1
    return size
