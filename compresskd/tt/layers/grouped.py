"""An embedding whose rows are in groups, each of a low rank of its own: see `compresskd.tt.decompose.row_groups`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.decompose.metric import Metric
from compresskd.tt.decompose.row_groups import MOST_GROUPS, Table
from compresskd.tt.decompose.whitening import round_in_metric
from compresskd.tt.execution.product import is_watched
from compresskd.tt.layers.base import FactorizedLayer
from compresskd.tt.layers.embedding import without_autocast
from compresskd.tt.layers.padded_rows import PaddedRows, padding_row, scale_of


class GroupedEmbedding(PaddedRows, FactorizedLayer):
    """Token ids [...] to rows [..., embedding_dim] of a table whose groups of rows have ranks of their own.

    Args:
        counts: rows of each group.
        ranks: of each group, at most its rows and `embedding_dim`.
        padding_idx: the row that gets no gradient; `padding` says what it is, see `PaddedRows`.

    Attributes:
        factors: rows [V_k, r_k] and basis [r_k, D] of each group in turn.
        members: uint8, the group of each row in as few bits as tell them apart (1, 2 or 4).

    Raises:
        ValueError: sizes that do not fit.
    """

    FIELDS = ("num_embeddings", "embedding_dim", "counts", "ranks", "padding_idx")
    members: Tensor
    bias = None
    sparse = False

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        counts: Sequence[int],
        ranks: Sequence[int],
        *,
        padding_idx: int | None = None,
        padding: str = "zero",
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if sum(counts) != num_embeddings or min(counts) < 1 or len(counts) > MOST_GROUPS:
            raise ValueError(
                f"expected at most {MOST_GROUPS} groups of {num_embeddings} rows together, got {counts}"
            )
        most = [min(count, embedding_dim) for count in counts]
        if len(ranks) != len(counts) or any(not 1 <= r <= m for r, m in zip(ranks, most, strict=True)):
            raise ValueError(f"expected ranks between 1 and {most}, got {list(ranks)}")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"expected padding_idx within {num_embeddings} embeddings, got {padding_idx}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.counts, self.ranks = tuple(counts), tuple(ranks)
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.scale = scale
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        shapes = [s for count, r in zip(counts, ranks, strict=True) for s in ((count, r), (r, embedding_dim))]
        self.factors = nn.ParameterList([torch.empty(shape, **options) for shape in shapes])
        # on the CPU whatever the default device is, where nothing could be repeated without values
        sizes = torch.tensor(self.counts, device="cpu")
        in_order = torch.arange(len(counts), device="cpu").repeat_interleave(sizes)
        self.register_buffer("members", _packed(in_order, self._bits).to(self.factors[0].device))
        self._set_padding(padding)
        self.reset_parameters()

    @classmethod
    def of_table(cls, table: Table, ranks: Sequence[int], like: Any) -> Self:
        """The layer of these ranks, with the options and padding row of an embedding whose table this is."""
        row = padding_row(like)
        made = cls(
            like.num_embeddings,
            like.embedding_dim,
            table.counts,
            ranks,
            padding_idx=like.padding_idx,
            padding="zero" if row is None else "kept",
            scale=scale_of(like),
            device="meta",
        )
        made._hold(table.factors(ranks), _packed(table.group, made._bits))
        if row is not None:
            made.padding_row = row.clone()
        return made

    def _hold(self, factors: Sequence[Tensor], members: Tensor) -> None:
        self.factors = nn.ParameterList([factor.detach().clone() for factor in factors])
        self.members = members.clone()

    @property
    def _bits(self) -> int:
        """Of the group of a row."""
        return next(bits for bits in (1, 2, 4) if 2**bits >= len(self.counts))

    def _fill(self, gain: float) -> None:
        """The entries of the table have variance gain^2, as nn.Embedding's have 1."""
        for rows, basis in self._pairs():
            rows.normal_(std=gain * rows.shape[1] ** -0.5)
            basis.normal_()

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        factors: list[Tensor] = [*self.factors]
        return list(zip(factors[::2], factors[1::2], strict=True))

    def _places(self) -> tuple[Tensor, Tensor]:
        """[V] the group of each row, and [V] its place there."""
        powers = 2 ** torch.arange(0, 8, self._bits, device=self.members.device)
        parts = torch.div(self.members.long().unsqueeze(1), powers, rounding_mode="floor")
        group = (parts % 2**self._bits).flatten()[: self.num_embeddings]
        place = torch.zeros_like(group)
        for k in range(len(self.counts)):
            inside = group == k
            place = torch.where(inside, inside.cumsum(0) - 1, place)
        return group, place

    def to_dense(self) -> Tensor:
        """The table [num_embeddings, embedding_dim], differentiable but for the padding row."""
        ids = torch.arange(self.num_embeddings, device=self.members.device)
        table = self._rows(ids)
        return table if self.padding_idx is None else self._padded(table, ids)

    def round(
        self,
        rank: int | None = None,
        *,
        ranks: Sequence[int] | None = None,
        tolerance: float | None = None,
        metric: Metric | None = None,
    ) -> Self:
        """A layer of lower ranks for nearly the same table: as `TensorTrainLayer.round`, group by group.

        Of a metric its outputs are [V], how much each row counts.
        """
        if rank is not None and ranks is None:
            ranks = [min(rank, r) for r in self.ranks]
        factors: list[Tensor] = []
        group, _ = self._places()
        for k, (rows, basis) in enumerate(self._pairs()):
            given = None if ranks is None else [ranks[k]]
            counted = (
                metric
                if metric is None or metric.outputs is None
                else replace(metric, outputs=metric.outputs[group == k])
            )
            cores = [rows.detach()[None, :, None], basis.detach()[:, None, :, None]]
            cores = round_in_metric(cores, counted, ranks=given, tolerance=tolerance)
            factors += [cores[0][0, :, 0], cores[1][:, 0, :, 0]]
        made = type(self).from_structure({**self.structure(), "ranks": [f.shape[1] for f in factors[::2]]})
        made._hold(factors, self.members)
        if self.padding == "kept":
            made.padding_row = self.padding_row.clone()
        return made.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] (int32 or int64, below num_embeddings) to [..., embedding_dim].

        Raises:
            IndexError: an id is out of range (not checked where a compiler or `torch.func` watches, nor on meta).
        """
        ids = input.reshape(-1)
        if not is_watched() and type(input) in (Tensor, nn.Parameter) and not ids.is_meta:
            self._check(ids)
        with without_autocast(self.members.device.type):
            rows = self._finished(self._rows(ids), ids)
        return rows.reshape(*input.shape, self.embedding_dim)

    def _rows(self, ids: Tensor) -> Tensor:
        """[T] to [T, D]: of each token the coefficients of its group, zeros for the other groups', times all bases."""
        group, place = (each[ids] for each in self._places())
        coefficients = []
        for k, (rows, _) in enumerate(self._pairs()):
            inside = group == k
            found = F.embedding(torch.where(inside, place, 0), rows)
            coefficients.append(found * inside.unsqueeze(-1).to(found.dtype))
        return torch.cat(coefficients, -1) @ torch.cat([basis for _, basis in self._pairs()])


def _packed(group: Tensor, bits: int) -> Tensor:
    """uint8 [ceil(V bits / 8)]: groups [V] in so many bits each, the first in the lowest."""
    per_byte = 8 // bits
    padded = F.pad(group, (0, -len(group) % per_byte)).view(-1, per_byte)
    powers = 2 ** torch.arange(0, 8, bits, device=group.device)
    return (padded * powers).sum(1).to(torch.uint8)
