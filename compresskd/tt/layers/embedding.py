"""An embedding whose table is held as a tensor train: rows are computed from cores, the table never is.

The table [V, D] is a matrix whose rows are the vocabulary: core k is [r_{k-1}, v_k, d_k, r_k]. At one cut the cores
are merged to two small tables, left [V_1, D_1 r] and right [V_2, r D_2]; the row of token t is the product of row
t // V_2 of the one with row t % V_2 of the other. Hrinchuk et al., Tensorized embedding layers, EMNLP 2020.
"""

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.decompose.cores import balance, merge, to_matrix
from compresskd.tt.decompose.cores import num_parameters as num_core_parameters
from compresskd.tt.decompose.tt_svd import check_modes, tt_svd
from compresskd.tt.execution.cached_operands import can_keep
from compresskd.tt.execution.product import is_watched
from compresskd.tt.layers.base import TensorTrainLayer
from compresskd.tt.layers.padded_rows import PaddedRows, padding_row, scale_of

MAX_TABLE = 1 << 22


class TTEmbedding(PaddedRows, TensorTrainLayer):
    """Token ids [...] to rows [..., embedding_dim] of a table [num_embeddings, embedding_dim] in TT format.

    Products of `vocabulary_dims` and `embedding_dims` may exceed the sizes. The row `padding_idx` gets no gradient;
    `padding` says what it is: 'zero', 'kept' (the buffer `padding_row` [embedding_dim]) or 'cores' (what the cores
    say, as where a linear layer has the same cores and trains that row). Rows are multiplied by `scale`, as those of
    Gemma's and BART's embeddings are; the table is what they are before. With `sparse=True` the gradient of the first
    core is sparse where its rows are looked up directly (two cores, as in the low-rank SVD): for optimizers that take
    sparse gradients.
    """

    FIELDS = (
        "num_embeddings", "embedding_dim", "vocabulary_dims", "embedding_dims", "ranks", "padding_idx", "sparse",
    )  # fmt: skip

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        vocabulary_dims: Sequence[int],
        embedding_dims: Sequence[int],
        tt_rank: int,
        *,
        ranks: Sequence[int] | None = None,
        padding_idx: int | None = None,
        padding: str = "zero",
        sparse: bool = False,
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_modes(embedding_dim, num_embeddings, embedding_dims, vocabulary_dims)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"expected padding_idx within {num_embeddings} embeddings, got {padding_idx}")
        super().__init__(embedding_dims, vocabulary_dims, tt_rank, ranks, device, dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.vocabulary_dims, self.embedding_dims = tuple(vocabulary_dims), tuple(embedding_dims)
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.sparse, self.scale, self.bias = sparse, scale, None
        self._set_padding(padding)
        self.reset_parameters()

    def _fill(self, gain: float) -> None:
        """The entries of the table have variance gain^2, as nn.Embedding's have 1."""
        for core in self.cores:
            core.normal_(std=core.shape[3] ** -0.5)
        self.cores[0].mul_(gain)

    @classmethod
    def from_dense(
        cls,
        embedding: nn.Embedding,
        vocabulary_dims: Sequence[int],
        embedding_dims: Sequence[int],
        *,
        ranks: Sequence[int] | None = None,
        tolerance: float | None = None,
    ) -> Self:
        """TT-SVD of the table in these modes, balanced; all ranks full where neither is given."""
        weight = embedding.weight.detach()
        result = tt_svd(weight, embedding_dims, vocabulary_dims, ranks=ranks, tolerance=tolerance)
        return cls.from_cores(balance(result.cores), embedding)

    @classmethod
    def from_cores(cls, cores: Sequence[Tensor], like: "nn.Embedding | TTEmbedding") -> Self:
        """The layer that holds copies of these cores, with the sizes, options and padding row of `like`."""
        row = padding_row(like)
        layer = cls(
            like.num_embeddings,
            like.embedding_dim,
            [core.shape[1] for core in cores],
            [core.shape[2] for core in cores],
            1,
            padding_idx=like.padding_idx,
            padding="zero" if row is None else "kept",
            sparse=like.sparse,
            scale=scale_of(like),
            device="meta",
        )
        if isinstance(like, TTEmbedding) and like.padding == "cores":
            layer.padding = "cores"
        layer.cores = nn.ParameterList([core.detach().clone() for core in cores])
        if row is not None:
            layer.padding_row = row.clone()
        return layer

    def to_dense(self) -> Tensor:
        """The table [num_embeddings, embedding_dim], differentiable but for the padding row."""
        table = to_matrix(list(self.cores))[: self.num_embeddings, : self.embedding_dim]
        if self.padding_idx is None:
            return table
        return self._padded(table, torch.arange(self.num_embeddings, device=table.device))

    def _from(self, cores: Sequence[Tensor]) -> Self:
        return self.from_cores(cores, self)

    def forward(self, input: Tensor) -> Tensor:
        """Ids [...] (int32 or int64, below num_embeddings) to [..., embedding_dim].

        Raises:
            IndexError: an id is out of range (not checked where a compiler or `torch.func` watches, nor on meta).
        """
        cores: list[Tensor] = list(self.cores)
        ids, watched = input.reshape(-1), is_watched() or type(input) not in (Tensor, nn.Parameter)
        find = _best_cut if watched else _known_cut  # a compiler would warn of the cache
        cut = find(self.vocabulary_dims, self.embedding_dims, tuple([core.shape[0] for core in cores[1:]]))
        if not watched and not ids.is_meta:
            self._check(ids)
        trained = torch.is_grad_enabled() and any(core.requires_grad for core in cores)
        with without_autocast(cores[0].device.type):
            if watched or trained:
                left, right = _tables(cores, cut)
            else:
                left, right = self._kept_tables(cores, cut, len(ids))
            rows = self._rows(ids, left, right, cores[0] if cut == 1 else None)
        if rows.shape[-1] != self.embedding_dim:
            rows = rows[..., : self.embedding_dim]
        rows = self._finished(rows, ids)
        return rows.reshape(*input.shape, self.embedding_dim)

    def _rows(self, ids: Tensor, left: Tensor, right: Tensor, first: Tensor | None) -> Tensor:
        """[T] to [T, D]; left [V_1, D_1, r], right [V_2, r, D_2]; `first` is the core that left is a view of."""
        (_, D1, r), (V2, _, D2) = left.shape, right.shape
        i1 = ids if V2 == 1 else torch.div(ids, V2, rounding_mode="floor")
        if self.sparse and first is not None and torch.is_grad_enabled() and first.requires_grad:
            a: Any = _SparseRows.apply(first, i1)
        else:
            a = F.embedding(i1, left.flatten(1))
        if V2 == 1:
            return (a.reshape(-1, r) @ right[0]).view(-1, D1 * D2)
        product = torch.bmm(a.view(-1, D1, r), _looked_up(right, ids % V2))
        if product.requires_grad and not is_watched():
            product: Any = _DenseGradient.apply(product)
        return product.view(-1, D1 * D2)

    def _kept_tables(self, cores: Sequence[Tensor], cut: int, num_ids: int) -> tuple[Tensor, Tensor]:
        """As `_tables`, kept where it can be; two cores are only viewed for fewer ids than the second has rows."""
        if can_keep(cores) and (len(cores) > 2 or num_ids >= cores[-1].shape[1]):
            make = functools.partial(_tables, [core.detach() for core in cores], cut)
            copied = range(1 if cut == 1 else 0, len(cores))
            return self._prepared.operands("tables", cores, copied, make).content
        left = merge(cores[:cut])[0]
        if cut == len(cores):
            return left, left.new_ones(1, 1, 1)
        return left, merge(cores[cut:])[..., 0].transpose(0, 1)


def _best_cut(
    vocabulary_dims: tuple[int, ...], embedding_dims: tuple[int, ...], ranks: tuple[int, ...]
) -> int:
    """Where to merge: the least work per token among cuts whose two tables stay small."""
    options, num_parameters = [], num_core_parameters(embedding_dims, vocabulary_dims, ranks)
    for k, r in enumerate(ranks, 1):
        V1, D1 = math.prod(vocabulary_dims[:k]), math.prod(embedding_dims[:k])
        V2, D2 = math.prod(vocabulary_dims[k:]), math.prod(embedding_dims[k:])
        size = V1 * D1 * r + V2 * D2 * r
        work = D1 * r * D2 / 8 + D1 * r + (D2 * r if V2 > 1 else 0)
        options.append((size > max(MAX_TABLE, 2 * num_parameters), work if size <= MAX_TABLE else size, k))
    return min(options)[2] if options else 1


_known_cut = functools.lru_cache(maxsize=1024)(_best_cut)


def _tables(cores: Sequence[Tensor], cut: int) -> tuple[Tensor, Tensor]:
    """Left [V_1, D_1, r] and right [V_2, r, D_2] of the cores merged on both sides of a cut; differentiable."""
    left = merge(cores[:cut])[0]
    if cut == len(cores):
        return left, left.new_ones(1, 1, 1)
    return left, merge(cores[cut:])[..., 0].transpose(0, 1).contiguous()


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Rows are looked up, as nn.Embedding's are: in the dtype of the table."""
    if not torch._C._is_any_autocast_enabled() or device_type == "meta":
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _looked_up(table: Tensor, ids: Tensor) -> Tensor:
    """[T, r, D] of a table [V, r, D]."""
    _, r, D = table.shape
    if table.is_contiguous() or len(ids) >= len(table):
        return F.embedding(ids, table.flatten(1)).view(-1, r, D)
    return (
        table.transpose(0, 1).index_select(1, ids).transpose(0, 1)
    )  # to lay all of it out would take longer


class _DenseGradient(torch.autograd.Function):
    """The same numbers; their gradient is laid out in full, since a batch product copies others matrix by matrix."""

    generate_vmap_rule = True

    @staticmethod
    def forward(product: Tensor) -> Tensor:
        # no view: what is one when it leaves could not be written into
        return torch.ops.aten._unsafe_view(product, product.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad.contiguous()


class _SparseRows(torch.autograd.Function):
    """Rows of the first core [1, V, D_1, r] as [T, D_1 r]; its gradient is sparse in the first two dimensions."""

    @staticmethod
    def forward(ctx: Any, core: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = core.shape
        return F.embedding(ids, core[0].flatten(1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (ids,) = ctx.saved_tensors
        values = grad.view(-1, *ctx.shape[2:])
        indices = torch.stack([torch.zeros_like(ids), ids])
        return torch.sparse_coo_tensor(indices, values, ctx.shape, check_invariants=False), None
