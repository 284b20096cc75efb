"""A linear layer of low rank whose factors hold no number twice: some outputs make the others."""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresskd.tt.decompose.metric import Metric
from compresskd.tt.decompose.whitening import round_in_metric
from compresskd.tt.layers.base import FactorizedLayer


class InterpolativeLinear(FactorizedLayer):
    """y = x W^T + b with W [M, N] of rank r: r of its rows, and what makes the other rows of them.

    Two factors U [M, r] V [r, N] stand for the same weight in the gauge U Q^-1, Q V of every invertible Q. Here it is
    fixed so that U holds an identity at r chosen rows, which is not stored: r (M + N - r) parameters, not r (M + N),
    fewer than the dense weight at every rank (interpolative decomposition: Cheng et al. 2005, doi:10.1137/030602678;
    for language models PIFA, Zhao et al. 2025, arXiv:2501.19090).

    Attributes:
        factors: rows of the weight [r, N], and where r < M the mixture of them that each of the others is [M - r, r].
        chosen: [M] bool, which outputs these rows are, in their order.
    """

    FIELDS = ("in_features", "out_features", "ranks", "bias")
    OF_MATRICES = True
    chosen: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ranks: tuple[int],
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (rank,) = ranks
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(f"expected a rank between 1 and {min(in_features, out_features)}, got {rank}")
        self.in_features, self.out_features, self.ranks = in_features, out_features, (rank,)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        shapes = [(rank, in_features), (out_features - rank, rank)][: 1 if rank == out_features else 2]
        self.factors = nn.ParameterList([torch.empty(shape, **options) for shape in shapes])
        self.register_buffer("chosen", torch.arange(out_features, device=device) < rank)
        self.bias = nn.Parameter(torch.empty(out_features, **options)) if bias else None
        self.reset_parameters()

    @classmethod
    def of_cores(cls, cores: list[Tensor], bias: Tensor | None) -> Self:
        """The layer of the weight that two cores [1, M, 1, r], [r, 1, N, 1] of a low-rank SVD stand for.

        The rows are those that a pivoted QR decomposition takes first (Businger and Golub 1965): none of the others
        is a large multiple of them.
        """
        from scipy.linalg import qr  # it takes a fifth of a second, and only this needs it

        left, right = cores[0][0, :, 0].double(), cores[1][:, 0, :, 0].double()
        basis = torch.linalg.qr(left).Q
        rank = basis.shape[1]
        order: Any = qr(basis.T.cpu().numpy(), mode="r", pivoting=True)[-1]
        chosen = torch.zeros(len(left), dtype=torch.bool, device=left.device)
        chosen[torch.from_numpy(order[:rank]).long().to(left.device)] = True
        mixtures = torch.linalg.solve(basis[chosen], basis[~chosen], left=False)
        layer = cls(right.shape[1], len(left), (rank,), bias=bias is not None, device="meta")
        values = (left[chosen] @ right, mixtures)[: len(layer.factors)]
        layer.factors = nn.ParameterList([value.to(cores[0].dtype).contiguous() for value in values])
        layer.chosen = chosen
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    @property
    def dense_shape(self) -> tuple[int, int]:
        """[out_features, in_features]."""
        return self.out_features, self.in_features

    def _fill(self, gain: float) -> None:
        rows, *mixtures = self.factors
        rows.normal_(std=gain * self.in_features**-0.5)
        for mixture in mixtures:
            mixture.normal_(std=len(rows) ** -0.5)

    def _places(self) -> Tensor:
        """[M] where each output is among the chosen ones followed by the others."""
        return torch.where(
            self.chosen, self.chosen.cumsum(0) - 1, self.ranks[0] + (~self.chosen).cumsum(0) - 1
        )

    def round(
        self,
        rank: int | None = None,
        *,
        ranks: Sequence[int] | None = None,
        tolerance: float | None = None,
        metric: Metric | None = None,
    ) -> Self:
        """A layer of a lower rank for nearly the same weight: as `TensorTrainLayer.round`."""
        if rank is not None and ranks is None:
            ranks = [rank]
        rows, *mixtures = self.factors
        eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        left = torch.cat([eye, *mixtures])[self._places()]
        cores = [left[None, :, None], rows[:, None, :, None]]
        cores = round_in_metric(cores, metric, ranks=ranks, tolerance=tolerance)
        return self.of_cores(cores, self.bias).train(self.training)

    def macs(self, input: Tensor) -> int:
        """Multiply-accumulates for input [..., in_features]."""
        rank = self.ranks[0]
        return input.numel() // self.in_features * rank * (self.in_features + self.out_features - rank)

    def to_dense(self) -> Tensor:
        """The weight [out_features, in_features], differentiable."""
        rows, *mixtures = self.factors
        return torch.cat([rows, *(mixture @ rows for mixture in mixtures)])[self._places()]

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        rows, *mixtures = self.factors
        first = F.linear(input, rows)
        parts = [first, *(F.linear(first, mixture) for mixture in mixtures)]
        places = self._places().int()  # of 64 bits, selecting takes seven times as long on a CPU
        y = torch.cat(parts, -1).index_select(-1, places)
        return y if self.bias is None else y + self.bias.to(y.dtype)  # autocast computed y in its own
