"""What factorized embeddings share: their sizes, the padding row, and the scale of rows."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from compresskd import layers

PADDINGS = ("zero", "kept", "cores")


class PaddedRows:
    """A part of a factorized embedding, which comes before its other base classes.

    `padding` says what the row `padding_idx` is, which gets no gradient: 'zero', 'kept' (the buffer `padding_row`
    [embedding_dim]) or 'cores' (what the factors say). Rows are multiplied by `scale`.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    padding: str
    padding_row: Tensor
    scale: float

    @property
    def dense_shape(self) -> tuple[int, int]:
        """[num_embeddings, embedding_dim]."""
        return self.num_embeddings, self.embedding_dim

    def gain_of(self, deviation: float) -> float:
        """Rows are looked up, not summed: the gain is the root mean square itself."""
        return deviation

    def structure(self) -> dict[str, Any]:
        """As of every factorized layer; `padding` and `scale` only where they do something, as in files of before."""
        padding = {} if self.padding == "zero" else {"padding": self.padding}
        told = super().structure()  # pyright: ignore[reportAttributeAccessIssue]
        return told | padding | ({} if self.scale == 1.0 else {"scale": self.scale})

    @classmethod
    def from_structure(cls, structure: Mapping[str, Any], **options: Any) -> Self:
        """As of every factorized layer."""
        layer = super().from_structure(structure, **options)  # pyright: ignore[reportAttributeAccessIssue]
        layer._set_padding(structure.get("padding", "zero"))
        layer.scale = float(structure.get("scale", 1.0))
        return layer

    def _set_padding(self: Any, padding: str) -> None:
        if padding not in PADDINGS:
            raise ValueError(f"expected padding to be one of {', '.join(PADDINGS)}; got {padding!r}")
        self.padding = padding
        if padding == "kept":
            factor = next(self.parameters())
            row = torch.zeros(self.embedding_dim, device=factor.device, dtype=factor.dtype)
            self.register_buffer("padding_row", row)

    def _padded(self: Any, rows: Tensor, ids: Tensor) -> Tensor:
        """[T, D] rows of ids [T], the padding row as `padding` says and without a gradient."""
        is_padding = (ids == self.padding_idx).unsqueeze(-1)
        if self.padding == "zero":
            return rows.masked_fill(is_padding, 0.0)
        kept = self.padding_row.to(rows.dtype) if self.padding == "kept" else rows.detach()
        return torch.where(is_padding, kept, rows)

    def _finished(self, rows: Tensor, ids: Tensor) -> Tensor:
        """[T, D] rows of ids [T] with the padding row as it is to be, scaled."""
        if self.padding_idx is not None:
            rows = self._padded(rows, ids)
        return rows if self.scale == 1.0 else rows * self.scale

    def _check(self, ids: Tensor) -> None:
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.num_embeddings):
            raise IndexError(
                f"expected ids from 0 to {self.num_embeddings - 1}, got {int(ids.min())} to {int(ids.max())}"
            )


def scale_of(layer: nn.Module) -> float:
    """By how much an embedding, ordinary or factorized, multiplies its rows."""
    return layer.scale if isinstance(layer, PaddedRows) else layers.scale_of(layer) or 1.0


def padding_row(like: Any) -> Tensor | None:
    """The padding row [D] where it is kept; None where there is none, or it is zero or the factors'."""
    if isinstance(like, PaddedRows):
        return like.padding_row if like.padding == "kept" else None
    if like.padding_idx is None or not bool(like.weight[like.padding_idx].any()):
        return None
    return like.weight[like.padding_idx].detach()
