"""Residual networks for small images, with parameter-free shortcuts: ResNet-20, 32, 44, 56, 110."""

import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.models.checks import Classes, Shape, blocks_per_group, image_shape
from compresskd.options import Positive, checked


@checked
class ResNet(nn.Module):
    """CIFAR ResNet with option-A shortcuts (He et al., "Deep residual learning", 2016, section 4.2).

    A 3x3 convolution, three groups of (depth - 2) / 6 blocks at 16, 32, 64 channels, global average pooling,
    a linear layer. Parameter names are those of the widely shared checkpoints: `conv1, bn1, layer1.0.conv1,
    layer1.0.bn1, ..., linear`. Parameters on [3, 32, 32] with 10 classes: 269,722 (depth 20), 464,154 (32),
    658,586 (44), 853,018 (56), 1,727,962 (110).

    Args:
        depth: number of weighted layers, 6n + 2.
        width_multiplier: factor on the channel counts; may be a fraction such as 0.5.
        num_classes: number of logits.
        input_shape: `[C, H, W]`, at least 4x4 pixels, so that two halvings leave something.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        *,
        depth: int = 20,
        width_multiplier: Positive = 1.0,
        num_classes: Classes,
        input_shape: Shape,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(input_shape, architecture="ResNet", minimum=4)
        num_blocks = blocks_per_group(depth, 2)
        width = max(1, round(16 * width_multiplier))
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _group(width, width, 1, num_blocks)
        self.layer2 = _group(width, 2 * width, 2, num_blocks)
        self.layer3 = _group(2 * width, 4 * width, 2, num_blocks)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each batch-normalised, added to what `downsample` makes of the input.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the first convolution.
        downsample: the shortcut; it must give the shape that the convolutions give.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H / stride, W / stride]`, rounded up."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class SubsampleAndPad(nn.Module):
    """Option-A shortcut: every `stride`-th pixel; zeros for the channels that are new, half on each side."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, H, W]` to `[B, out_channels, H / stride, W / stride]`, rounded up."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def _group(in_channels: int, out_channels: int, stride: int, num_blocks: int) -> nn.Sequential:
    same = stride == 1 and in_channels == out_channels
    shortcut = nn.Identity() if same else SubsampleAndPad(in_channels, out_channels, stride)
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, shortcut),
        *(BasicBlock(out_channels, out_channels, 1, nn.Identity()) for _ in range(1, num_blocks)),
    )
