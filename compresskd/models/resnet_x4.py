"""The distillation literature's wider residual networks, with projecting shortcuts: ResNet-8x4 and 32x4."""

import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.models.checks import Classes, Shape, blocks_per_group, image_shape
from compresskd.models.resnet import BasicBlock
from compresskd.options import checked


@checked
class ResNetX4(nn.Module):
    """CIFAR ResNet with a stem of 32 and groups of 64, 128, 256 channels; shortcuts are 1x1 convolutions.

    Architecture and parameter names (`conv1, bn1, layer1.0.conv1, layer1.0.downsample.0, ..., fc`) are those
    of Tian et al., "Contrastive representation distillation" (2020): the teachers published with it load.
    Parameters on [3, 32, 32] with 100 classes: 1,233,540 (depth 8), 7,433,860 (depth 32).

    Args:
        depth: number of weighted layers, 6n + 2, shortcuts not counted.
        num_classes: number of logits.
        input_shape: `[C, H, W]`, at least 4x4 pixels, so that two halvings leave something.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(self, *, depth: int = 8, num_classes: Classes, input_shape: Shape) -> None:
        super().__init__()
        channels, _, _ = image_shape(input_shape, architecture="ResNetX4", minimum=4)
        num_blocks = blocks_per_group(depth, 2)
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.layer1 = _group(32, 64, 1, num_blocks)
        self.layer2 = _group(64, 128, 2, num_blocks)
        self.layer3 = _group(128, 256, 2, num_blocks)
        self.fc = nn.Linear(256, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to logits `[B, num_classes]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _group(in_channels: int, out_channels: int, stride: int, num_blocks: int) -> nn.Sequential:
    projection = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, projection),
        *(BasicBlock(out_channels, out_channels, 1, nn.Identity()) for _ in range(1, num_blocks)),
    )
