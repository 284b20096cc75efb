"""An embedding whose table is held as a tensor train: rows are computed from cores, the table never is.

The table [V, D] is a matrix whose rows are the vocabulary: core k is [r_{k-1}, v_k, d_k, r_k]. At one bond the cores
are merged to two small tables, left [V_1, D_1 r] and right [V_2, r D_2]; the row of token t is the product of row
t // V_2 of the one with row t % V_2 of the other. Hrinchuk et al., Tensorized embedding layers, EMNLP 2020.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.cores import balance, core_shapes, merge, to_matrix
from compresskd.tt.decompose import check_modes, tt_svd
from compresskd.tt.layer import TensorTrainLayer

MAX_TABLE = 1 << 22
PADDINGS = ("zero", "kept", "cores")


class TTEmbedding(TensorTrainLayer):
    """Token ids [...] to rows [..., embedding_dim] of a table [num_embeddings, embedding_dim] in TT format.

    Products of `vocabulary_dims` and `embedding_dims` may exceed the sizes. The row `padding_idx` gets no gradient;
    `padding` says what it is: 'zero', 'kept' (the buffer `padding_row` [embedding_dim]) or 'cores' (what the cores
    say, as where a linear layer has the same cores and trains that row). With `sparse=True` the gradient of the first
    core is sparse where its rows are looked up directly (two cores, as in the low-rank SVD): for optimizers that take
    sparse gradients.
    """

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if padding not in PADDINGS:
            raise ValueError(f"expected padding to be one of {', '.join(PADDINGS)}; got {padding!r}")
        check_modes(embedding_dim, num_embeddings, embedding_dims, vocabulary_dims)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"expected padding_idx within {num_embeddings} embeddings, got {padding_idx}")
        super().__init__(embedding_dims, vocabulary_dims, tt_rank, ranks, device, dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.vocabulary_dims, self.embedding_dims = tuple(vocabulary_dims), tuple(embedding_dims)
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.padding, self.sparse = padding, sparse
        if padding == "kept":
            self.padding_row: Tensor
            self.register_buffer("padding_row", torch.zeros(embedding_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, *, gain: float = 1.0) -> None:
        """Fresh cores: the entries of the table have variance gain^2, as nn.Embedding's have 1."""
        if self.cores[0].is_meta:  # nothing to fill; to try would load torch's compiler, a second and more
            return
        with torch.no_grad():
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
        """TT-SVD of the table in these modes, balanced; all ranks full where neither wish is given."""
        weight = embedding.weight.detach()
        result = tt_svd(weight, embedding_dims, vocabulary_dims, ranks=ranks, tolerance=tolerance)
        return cls.from_cores(balance(result.cores), embedding)

    @classmethod
    def from_cores(cls, cores: Sequence[Tensor], like: "nn.Embedding | TTEmbedding") -> Self:
        """The layer that holds copies of these cores, with the sizes, options and padding row of `like`."""
        row = _padding_row(like)
        layer = cls(
            like.num_embeddings,
            like.embedding_dim,
            [core.shape[1] for core in cores],
            [core.shape[2] for core in cores],
            1,
            padding_idx=like.padding_idx,
            padding="zero" if row is None else "kept",
            sparse=like.sparse,
            device="meta",
        )
        if isinstance(like, TTEmbedding) and like.padding == "cores":
            layer.padding = "cores"
        layer.cores = nn.ParameterList([core.detach().clone() for core in cores])
        if row is not None:
            layer.padding_row = row.clone()
        return layer

    @classmethod
    def from_structure(
        cls,
        structure: Mapping[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The layer of that structure with all parameters zero."""
        layer = cls(
            structure["num_embeddings"],
            structure["embedding_dim"],
            structure["vocabulary_dims"],
            structure["embedding_dims"],
            1,
            padding_idx=structure["padding_idx"],
            padding=structure.get("padding", "zero"),
            sparse=structure["sparse"],
            device="meta",
        )
        if layer.padding == "kept":
            layer.padding_row = torch.zeros(layer.embedding_dim, device=device, dtype=dtype)
        shapes = core_shapes(layer.embedding_dims, layer.vocabulary_dims, structure["ranks"])
        layer.cores = nn.ParameterList([torch.zeros(shape, device=device, dtype=dtype) for shape in shapes])
        return layer

    def structure(self) -> dict[str, Any]:
        """All that is needed to build the empty layer again, in plain values."""
        return {
            "class": "TTEmbedding",
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "vocabulary_dims": list(self.vocabulary_dims),
            "embedding_dims": list(self.embedding_dims),
            "ranks": list(self.ranks),
            "padding_idx": self.padding_idx,
            "sparse": self.sparse,
            **(
                {} if self.padding == "zero" else {"padding": self.padding}
            ),  # files of before have no such key
        }

    @property
    def num_parameters_dense(self) -> int:
        """Of the table that this layer stands for."""
        return self.num_embeddings * self.embedding_dim

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
            IndexError: an id is out of range (not checked under compilation).
        """
        cores: list[Tensor] = list(self.cores)
        if len(self.cores._parameters) < len(cores):
            self._prepared.clear()  # parametrized cores are new tensors at each call: nothing tells old from new
        compiling = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        ids = input.reshape(-1)
        bond = self._bond(cores)
        if compiling or (torch.is_grad_enabled() and any(core.requires_grad for core in cores)):
            left, right = self._tables(cores, bond)
        else:
            left, right = self._prepared.get(cores, "tables") or self._prepared.put(
                "tables", lambda: self._tables([core.detach() for core in cores], bond)
            )
        if not compiling:
            self._check(ids)
        rows = self._rows(ids, left, right, cores[0] if bond == 1 else None)
        if rows.shape[-1] != self.embedding_dim:
            rows = rows[..., : self.embedding_dim]
        if self.padding_idx is not None:
            rows = self._padded(rows, ids)
        return rows.reshape(*input.shape, self.embedding_dim)

    def _padded(self, rows: Tensor, ids: Tensor) -> Tensor:
        """[T, D] rows of ids [T], the padding row as `padding` says and without a gradient."""
        is_padding = (ids == self.padding_idx).unsqueeze(-1)
        if self.padding == "zero":
            return rows.masked_fill(is_padding, 0.0)
        kept = self.padding_row.to(rows.dtype) if self.padding == "kept" else rows.detach()
        return torch.where(is_padding, kept, rows)

    def _rows(self, ids: Tensor, left: Tensor, right: Tensor, first: Tensor | None) -> Tensor:
        """[T] to [T, D]; left [V_1, D_1, r], right [V_2, r, D_2]; `first` is the core that left is a view of."""
        (_, D1, r), (V2, _, D2) = left.shape, right.shape
        i1 = ids if V2 == 1 else torch.div(ids, V2, rounding_mode="floor")
        if self.sparse and first is not None and torch.is_grad_enabled() and first.requires_grad:
            a = _SparseRows.apply(first, i1)
        else:
            a = F.embedding(i1, left.flatten(1))
        if V2 == 1:
            return (a.reshape(-1, r) @ right[0]).view(-1, D1 * D2)  # pyright: ignore[reportOptionalMemberAccess]
        b = F.embedding(ids % V2, right.flatten(1))
        product = torch.bmm(a.view(-1, D1, r), b.view(-1, r, D2))  # pyright: ignore[reportOptionalMemberAccess]
        if product.requires_grad and not torch.compiler.is_compiling():
            product = _DenseGradient.apply(product)
        return product.view(-1, D1 * D2)  # pyright: ignore[reportOptionalMemberAccess]

    def _bond(self, cores: Sequence[Tensor]) -> int:
        """Where to merge: the least work per token among bonds whose two tables stay small."""
        options = []
        for k in range(1, len(cores)):
            V1, D1 = math.prod(self.vocabulary_dims[:k]), math.prod(self.embedding_dims[:k])
            V2, D2 = math.prod(self.vocabulary_dims[k:]), math.prod(self.embedding_dims[k:])
            r = cores[k].shape[0]
            size = V1 * D1 * r + V2 * D2 * r
            work = D1 * r * D2 / 8 + D1 * r + (D2 * r if V2 > 1 else 0)
            options.append(
                (size > max(MAX_TABLE, 2 * self.num_parameters), work if size <= MAX_TABLE else size, k)
            )
        return min(options)[2] if options else 1

    def _tables(self, cores: Sequence[Tensor], bond: int) -> tuple[Tensor, Tensor]:
        left = merge(cores[:bond])[0]
        if bond == len(cores):
            return left, left.new_ones(1, 1, 1)
        return left, merge(cores[bond:])[..., 0].transpose(0, 1).contiguous()

    def _check(self, ids: Tensor) -> None:
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.num_embeddings):
            raise IndexError(
                f"expected ids from 0 to {self.num_embeddings - 1}, got {int(ids.min())} to {int(ids.max())}"
            )

    def extra_repr(self) -> str:
        """Modes, ranks, parameters against dense."""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, vocabulary_dims={self.vocabulary_dims}, "
            f"embedding_dims={self.embedding_dims}, ranks={self.ranks}, padding_idx={self.padding_idx}, "
            f"num_parameters={self.num_parameters} of {self.num_parameters_dense} dense"
        )


def _padding_row(like: "nn.Embedding | TTEmbedding") -> Tensor | None:
    """The padding row [D] where it is kept; None where there is none, or it is zero or the cores'."""
    if isinstance(like, TTEmbedding):
        return like.padding_row if like.padding == "kept" else None
    if like.padding_idx is None or not bool(like.weight[like.padding_idx].any()):
        return None
    return like.weight[like.padding_idx].detach()


class _DenseGradient(torch.autograd.Function):
    """The same numbers; their gradient is laid out in full, since a batch product copies others matrix by matrix."""

    generate_vmap_rule = True

    @staticmethod
    def forward(product: Tensor) -> Tensor:
        return product.view_as(product)

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
