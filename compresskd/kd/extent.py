"""Bringing two features to one extent: positions of an image ``H, W``, or tokens ``L``, of which padding is none."""

import torch.nn.functional as F
from torch import Tensor


def pooled(feature: Tensor, mask: Tensor | None = None) -> Tensor:
    """``[B, C]``: the feature averaged over its positions, of tokens ``[B, L, C]`` over those of ``mask [B, L]``."""
    if feature.ndim == 2:
        return feature
    if mask is not None and mask.shape == feature.shape[:2]:
        counted = mask[..., None]
        return (feature * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    return feature.mean(dim=(2, 3)) if feature.ndim == 4 else feature.mean(dim=1)


def aligned(a: Tensor, b: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both features at the smaller extent of the two, by adaptive average pooling; channels stay.

    An image beside tokens is read as tokens; anything beside a vector ``[B, C]`` is averaged over its
    positions. Tokens with a ``mask [B, L]`` become the rows that it names, ``[N, C]``; where only one side has as many
    tokens as the mask, both are averaged over their positions.
    """
    masked = [mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape for x in (a, b)]
    if all(masked):
        return a[mask], b[mask]
    if a.ndim == 2 or b.ndim == 2 or any(masked):
        return pooled(a, mask), pooled(b, mask)
    if a.ndim == b.ndim == 4:
        size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
        return _resized(a, size), _resized(b, size)
    a, b = _tokens(a), _tokens(b)
    num_tokens = min(a.shape[1], b.shape[1])
    return _shortened(a, num_tokens), _shortened(b, num_tokens)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    return image if tuple(image.shape[2:]) == size else F.adaptive_avg_pool2d(image, size)


def _tokens(feature: Tensor) -> Tensor:
    return feature.flatten(2).transpose(1, 2) if feature.ndim == 4 else feature


def _shortened(tokens: Tensor, num_tokens: int) -> Tensor:
    if tokens.shape[1] == num_tokens:
        return tokens
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), num_tokens).transpose(1, 2)
