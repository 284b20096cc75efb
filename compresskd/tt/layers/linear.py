"""A linear layer whose weight is held as a tensor train."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from compresskd.tt.decompose.cores import balance, to_matrix
from compresskd.tt.decompose.metric import Metric, Weighed, check_covariance
from compresskd.tt.decompose.tt_svd import check_modes, tt_svd
from compresskd.tt.decompose.whitening import tt_svd_whitened
from compresskd.tt.execution.cached_operands import promised
from compresskd.tt.execution.contraction import least_macs
from compresskd.tt.execution.policy import said
from compresskd.tt.execution.product import autocast_dtype, infer, is_watched, plan_of, traced, train
from compresskd.tt.layers.base import TensorTrainLayer

_is_grad_enabled, _get_num_threads = torch.is_grad_enabled, torch.get_num_threads
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled


class TTLinear(TensorTrainLayer):
    """y = x W^T + b with W [out_features, in_features] in tensor-train format.

    Cores are [r_{k-1}, m_k, n_k, r_k], m output modes (`output_dims`), n input modes (`input_dims`). Where the
    product of `input_dims` exceeds `in_features` the input is padded by zeros; where that of `output_dims` exceeds
    `out_features` the output is cut. `tt_rank` is the largest TT-rank, `ranks` gives one for each; both are clipped
    to what the unfoldings support.

    At inference the fastest plan is looked up for the batch, and what it needs (merged cores, or the whole weight
    where no factorized product is faster) is kept until a core changes, in whatever way it does (see
    `compresskd.tt.execution.cached_operands`): `inference_bytes` says how much that takes.
    """

    FIELDS = ("in_features", "out_features", "input_dims", "output_dims", "ranks", "bias")

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        tt_rank: int,
        *,
        ranks: Sequence[int] | None = None,
        in_features: int | None = None,
        out_features: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_features = math.prod(input_dims) if in_features is None else in_features
        out_features = math.prod(output_dims) if out_features is None else out_features
        check_modes(in_features, out_features, input_dims, output_dims)
        super().__init__(input_dims, output_dims, tt_rank, ranks, device, dtype)
        self.input_dims, self.output_dims = tuple(input_dims), tuple(output_dims)
        self.in_features, self.out_features = in_features, out_features
        vector = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", vector)
        self.reset_parameters()

    @property
    def dense_shape(self) -> tuple[int, int]:
        """[out_features, in_features]."""
        return self.out_features, self.in_features

    def _fill(self, gain: float) -> None:
        """Entries of core k have variance 1 / (n_k r_k), so that every step of the contraction keeps the variance."""
        for core in self.cores:
            core.normal_(std=(core.shape[2] * core.shape[3]) ** -0.5)
        self.cores[0].mul_(gain * (math.prod(self.input_dims) / self.in_features) ** 0.5)

    @classmethod
    def random(
        cls,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        tt_rank: int,
        *,
        gain: float = 1.0,
        **options: Any,
    ) -> Self:
        """A layer with fresh cores that keep the variance of the input, times gain^2; options as the class's."""
        layer = cls(input_dims, output_dims, tt_rank, **options)
        layer.reset_parameters(gain=gain)
        return layer

    @classmethod
    def from_dense(
        cls,
        linear: nn.Linear,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        *,
        ranks: Sequence[int] | None = None,
        tolerance: float | None = None,
        input_covariance: Tensor | None = None,
    ) -> Self:
        """TT-SVD of the weight in these modes, balanced; all ranks full where neither is given.

        `input_covariance` E[x x^T] [in_features, in_features], with `ranks`, makes the error of the output count.
        """
        weight = linear.weight.detach()
        if input_covariance is None:
            cores = tt_svd(weight, input_dims, output_dims, ranks=ranks, tolerance=tolerance).cores
        elif ranks is None:
            raise ValueError(
                "expected ranks together with input_covariance; factorize() takes other size targets"
            )
        else:
            metric = Metric(check_covariance(input_covariance, linear.in_features))
            cores = tt_svd_whitened(Weighed(weight, metric), input_dims, output_dims, ranks).cores
        return cls.from_cores(
            balance(cores), linear.bias, in_features=linear.in_features, out_features=linear.out_features
        )

    @classmethod
    def from_cores(
        cls, cores: Sequence[Tensor], bias: Tensor | None, *, in_features: int, out_features: int
    ) -> Self:
        """The layer that holds copies of these cores and of this bias [out_features]."""
        layer = cls(
            [core.shape[2] for core in cores],
            [core.shape[1] for core in cores],
            1,
            in_features=in_features,
            out_features=out_features,
            bias=bias is not None,
            device="meta",
        )
        layer.cores = nn.ParameterList([core.detach().clone() for core in cores])
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    def macs(self, input: Tensor) -> int:
        """Multiply-accumulates for input [..., in_features]: of the least chain, or of the dense weight if fewer."""
        dense = self.in_features * self.out_features
        chain = least_macs([core.shape for core in self.cores])
        return input.numel() // self.in_features * min(dense, chain)

    def to_dense(self) -> Tensor:
        """The weight [out_features, in_features], differentiable."""
        return to_matrix(list(self.cores))[: self.out_features, : self.in_features]

    def _from(self, cores: Sequence[Tensor]) -> Self:
        return self.from_cores(cores, self.bias, in_features=self.in_features, out_features=self.out_features)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if is_watched():
            return traced(input, list(self.cores), self.bias, self.out_features)
        # What takes longer than a few look-ups here is felt in small layers at batch 1.
        if not _is_grad_enabled() and not _is_any_autocast_enabled() and type(input) is Tensor:
            run = self._prepared.runs.get(
                (input.shape, input.dtype, _get_num_threads(), said(), promised() is None)
            )
            if run is not None:
                cores, bias = self._held()
                if run.holds(cores) and (bias is None or bias.dtype is input.dtype):
                    return run.content(input, bias)
        return self._any_forward(input)

    def _any_forward(self, input: Tensor) -> Tensor:
        """Every case but the repeated call at inference."""
        cores, bias = self._held()
        if type(input) not in (Tensor, nn.Parameter):  # one that has no numbers, or ways of its own
            return traced(input, cores, bias, self.out_features)
        if input.shape[-1] != self.in_features:
            raise ValueError(f"expected input [..., {self.in_features}], got {list(input.shape)}")
        dtype = autocast_dtype(input)
        if dtype is not None:
            with torch.autocast(input.device.type, enabled=False):
                return self._product(input.to(dtype), cores, bias)
        if input.dtype != cores[0].dtype:
            raise TypeError(f"expected input of {cores[0].dtype}, the dtype of the cores; got {input.dtype}")
        return self._product(input, cores, bias)

    def plan(self, input: Tensor, *, training: bool) -> str:
        """How an input [..., in_features] like this is multiplied; see `compresskd.tt.execution.policy`."""
        x = input.detach().reshape(-1, self.in_features).to(autocast_dtype(input) or input.dtype)
        return str(plan_of(x, list(self.cores), training=training)[0].plan)

    def _product(self, x: Tensor, cores: list[Tensor], bias: Tensor | None) -> Tensor:
        shape = x.shape
        rows = x if len(shape) == 2 else x.reshape(math.prod(shape[:-1]), shape[-1])
        if _is_grad_enabled() and any(t.requires_grad for t in (x, *cores, bias) if t is not None):
            if cores[0].dtype != x.dtype:
                cores = [core.to(x.dtype) for core in cores]
                bias = None if bias is None else bias.to(x.dtype)
            y = train(rows, cores, bias, self.out_features)
        else:
            y = infer(rows, cores, bias, self.out_features, self._prepared)
        return y if len(shape) == 2 else y.view(*shape[:-1], self.out_features)
