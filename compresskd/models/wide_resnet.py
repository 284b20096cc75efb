"""Wide residual networks with pre-activation: WRN-16-1, 16-2, 40-1, 40-2."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.models.checks import Classes, Dropout, Shape, blocks_per_group, image_shape
from compresskd.options import Count, checked


@checked
class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko & Komodakis, "Wide residual networks", 2016).

    Parameter names (`conv1, block1.layer.0.bn1, block1.layer.0.conv1, block1.layer.0.convShortcut, ..., fc`)
    are those of Tian et al., "Contrastive representation distillation" (2020): the teachers published with it
    load. Parameters on [3, 32, 32] with 100 classes: 180,916 (16-1), 703,284 (16-2), 569,780 (40-1),
    2,255,156 (40-2).

    Args:
        depth: number of weighted layers, 6n + 4, shortcuts included once per group.
        width: factor on the channel counts 16, 32, 64.
        dropout: probability that a value between the two convolutions of a block is zeroed in training.
        num_classes: number of logits.
        input_shape: `[C, H, W]`, at least 4x4 pixels, so that two halvings leave something.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        *,
        depth: int = 16,
        width: Count = 2,
        dropout: Dropout = 0.0,
        num_classes: Classes,
        input_shape: Shape,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(input_shape, architecture="WideResNet", minimum=4)
        num_blocks = blocks_per_group(depth, 4)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.block1 = Group(16, 16 * width, 1, num_blocks, dropout)
        self.block2 = Group(16 * width, 32 * width, 2, num_blocks, dropout)
        self.block3 = Group(32 * width, 64 * width, 2, num_blocks, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Group(nn.Module):
    """Blocks at one resolution; only the first changes it."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, num_blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            PreActivationBlock(in_channels, out_channels, stride, dropout),
            *(PreActivationBlock(out_channels, out_channels, 1, dropout) for _ in range(1, num_blocks)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H / stride, W / stride]`, rounded up."""
        return self.layer(x)


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, twice; where channels change, the activated input is projected."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H / stride, W / stride]`, rounded up."""
        y = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(y)
        y = F.relu(self.bn2(self.conv1(y)))
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return shortcut + self.conv2(y)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
