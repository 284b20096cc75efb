"""Vision transformer for small images.

Shapes: B batch, N tokens (patches and the class token), D width, H heads, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.models.checks import Classes, Dropout, Shape, image_shape
from compresskd.options import Count, OptionError, Positive, checked


@checked
class VisionTransformer(nn.Module):
    """Pre-norm transformer on square patches, classified by a class token.

    Dosovitskiy et al., "An image is worth 16x16 words" (2021), in the widths of DeiT-Ti (Touvron et al.,
    "Training data-efficient image transformers", 2021: 12 layers, width 192, 3 heads). Modules are named as
    in timm: `patch_embed.proj, cls_token, pos_embed, blocks.0.attn.qkv, ..., norm, head`. Every projection is
    a linear layer of its own. 5,362,762 parameters on [3, 32, 32] with patches of 4 and 10 classes.

    Args:
        patch_size: side of a patch in pixels; it must divide height and width.
        width: of the token vectors; it must be a multiple of `num_heads`.
        depth: number of transformer blocks.
        num_heads: attention heads per block.
        mlp_ratio: hidden units of a block's MLP per unit of `width`.
        dropout: probability, in training, of zeroing values of the embedded tokens and of a branch's output.
        num_classes: number of logits.
        input_shape: `[C, H, W]`.

    Raises:
        ValueError: an argument that cannot be, or a patch size that does not divide the image.
    """

    def __init__(
        self,
        *,
        patch_size: Count = 4,
        width: Count = 192,
        depth: Count = 12,
        num_heads: Count = 3,
        mlp_ratio: Positive = 4.0,
        dropout: Dropout = 0.0,
        num_classes: Classes,
        input_shape: Shape,
    ) -> None:
        super().__init__()
        channels, height, width_pixels = image_shape(input_shape, architecture="VisionTransformer")
        if height % patch_size or width_pixels % patch_size:
            expected = f"a divisor of the image's {height}x{width_pixels} pixels"
            raise OptionError("patch_size", patch_size, f"{expected}; {_patch_sizes(height, width_pixels)}")
        if width % num_heads:
            raise OptionError("width", width, f"a multiple of num_heads={num_heads}")
        hidden = max(1, round(width * mlp_ratio))
        self.dropout = dropout
        num_patches = (height // patch_size) * (width_pixels // patch_size)
        self.patch_embed = PatchEmbed(channels, width, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads, hidden, self.dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to logits `[B, K]`."""
        x_BND = self.patch_embed(x)
        cls_B1D = self.cls_token.expand(x_BND.shape[0], -1, -1)
        x_BND = torch.cat((cls_B1D, x_BND), dim=1) + self.pos_embed
        x_BND = F.dropout(x_BND, self.dropout, self.training)
        return self.head(self.norm(self.blocks(x_BND)[:, 0]))

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


class PatchEmbed(nn.Module):
    """One vector per patch: a convolution whose stride is its kernel."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, N, D]`, patches row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each on the normalised tokens and added to them."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape."""
        x_BND = x_BND + F.dropout(self.attn(self.norm1(x_BND)), self.dropout, self.training)
        return x_BND + F.dropout(self.mlp(self.norm2(x_BND)), self.dropout, self.training)


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one linear layer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape."""
        qkv_BN3Hd = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1))
        q_BHNd, k_BHNd, v_BHNd = qkv_BN3Hd.permute(2, 0, 3, 1, 4).unbind(0)
        x_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.proj(x_BHNd.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map tokens `[B, N, D]` to tokens of the same shape."""
        return self.fc2(F.gelu(self.fc1(x_BND)))


def _patch_sizes(height: int, width: int) -> str:
    dividing = [size for size in range(1, min(height, width) + 1) if not (height % size or width % size)]
    return f"choose one of {', '.join(map(str, dividing))}"
