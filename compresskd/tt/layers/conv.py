"""A two-dimensional convolution whose kernel is a tensor train, run as a chain of native convolutions.

The kernel [O, I, kh, kw] is read as the matrix [O, I kh kw]; the sequence (I, kh, kw, O) is cut into consecutive
stages. A stage with kernel (a, b) is one native convolution from r_{k-1} (the first: I) to r_k (the last: O)
channels, and core k is [r_{k-1}, m_k, n_k, r_k] with m_k = O in the last stage, else 1, and n_k = a b, times I in
the first stage. Stages ((1, 1), (kh, kw), (1, 1)) are the Tucker-2 form of Kim et al., ICLR 2016; ((kh, 1), (1, kw))
that of Jaderberg et al., BMVC 2014; ((kh, kw), (1, 1)) is the low-rank SVD.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from compresskd.tt.decompose.cores import balance, to_matrix
from compresskd.tt.decompose.metric import Metric, Weighed, check_covariance
from compresskd.tt.decompose.modes import Pair, stage_modes
from compresskd.tt.decompose.tt_svd import tt_svd
from compresskd.tt.decompose.whitening import tt_svd_whitened
from compresskd.tt.execution.cached_operands import CONSTANT, Derived, can_keep, promised
from compresskd.tt.execution.convolution import (
    Geometry,
    Way,
    chain_macs,
    fastest,
    is_in_rows,
    is_product,
    run_stages,
    stage_options,
    stages_run,
    ways,
)
from compresskd.tt.execution.policy import FIXED, said, source_of
from compresskd.tt.execution.product import autocast_dtype, is_watched
from compresskd.tt.layers.base import OfGeometry, TensorTrainLayer

TRAINING_MARGIN = FIXED_MARGIN = 0.8
_is_grad_enabled, _get_num_threads = torch.is_grad_enabled, torch.get_num_threads
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled


class TTConv2d(OfGeometry, TensorTrainLayer):
    """A convolution [B, I, H, W] to [B, O, H', W'] as a chain of stages, with nn.Conv2d's options but `groups`.

    `tt_rank` is the largest TT-rank, `ranks` gives one for each; both are clipped to what the unfoldings support.
    In training the chain runs, or the kernel is folded where the chain has nearly as many multiplications. At
    inference the faster of the two, its 1x1 stages as convolutions or as matrix products, as measured once for each
    input size; what it needs is kept until a core changes, in whatever way it does (see
    `compresskd.tt.execution.cached_operands`): `inference_bytes` says how much that takes.

    Raises:
        ValueError: `groups` is not 1, or the stages do not make a kernel.
    """

    FIELDS = (
        "in_channels", "out_channels", "stages", "ranks", "stride", "padding", "dilation", "padding_mode", "bias",
    )  # fmt: skip

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stages: Sequence[Pair],
        tt_rank: int,
        *,
        ranks: Sequence[int] | None = None,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups != 1:
            raise ValueError(
                f"TTConv2d has no form for groups={groups}: expected groups=1; leave such layers dense"
            )
        modes = stage_modes(stages, in_channels, out_channels)
        super().__init__(modes.input_dims, modes.output_dims, tt_rank, ranks, device, dtype)
        self.stages = tuple((a, b) for a, b in stages)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.input_dims, self.output_dims = modes.input_dims, modes.output_dims
        self.geometry = Geometry.of(self.stages, stride, padding, dilation, padding_mode)
        self._options = stage_options(self.stages, self.geometry)
        self._folded_options = stage_options([self.geometry.kernel_size], self.geometry)
        vector = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", vector)
        self.reset_parameters()

    @property
    def fan_in(self) -> int:
        """Paths through the stages to each output: away from the borders it keeps the variance."""
        return math.prod(self.input_dims)

    def _fill(self, gain: float) -> None:
        for core in self.cores:
            core.normal_(std=(core.shape[0] * core.shape[2]) ** -0.5)
        self.cores[0].mul_(gain)

    @classmethod
    def from_dense(
        cls,
        convolution: nn.Conv2d,
        stages: Sequence[Pair],
        *,
        ranks: Sequence[int] | None = None,
        tolerance: float | None = None,
        input_covariance: Tensor | None = None,
    ) -> Self:
        """TT-SVD of the kernel in these stages, balanced; all ranks full where neither is given.

        `input_covariance` E[p p^T] of the unfolded patches [I kh kw, I kh kw] (F.unfold's order), with `ranks`,
        makes the error of the output count.
        """
        weight = convolution.weight.detach().flatten(1)
        modes = stage_modes(stages, convolution.in_channels, convolution.out_channels)
        if input_covariance is None:
            cores = tt_svd(
                weight, modes.input_dims, modes.output_dims, ranks=ranks, tolerance=tolerance
            ).cores
        elif ranks is None:
            raise ValueError(
                "expected ranks together with input_covariance; factorize() takes other size targets"
            )
        else:
            metric = Metric(check_covariance(input_covariance, weight.shape[1]))
            cores = tt_svd_whitened(Weighed(weight, metric), modes.input_dims, modes.output_dims, ranks).cores
        return cls.from_cores(balance(cores), convolution, stages)

    @classmethod
    def from_cores(
        cls, cores: Sequence[Tensor], like: "nn.Conv2d | TTConv2d", stages: Sequence[Pair]
    ) -> Self:
        """The layer that holds copies of these cores, with the geometry and a copy of the bias of `like`."""
        bias = like.bias
        layer = cls(
            like.in_channels,
            like.out_channels,
            stages,
            1,
            stride=like.stride,  # pyright: ignore[reportArgumentType]
            padding=like.padding,  # pyright: ignore[reportArgumentType]
            dilation=like.dilation,  # pyright: ignore[reportArgumentType]
            groups=like.groups if isinstance(like, nn.Conv2d) else 1,
            bias=bias is not None,
            padding_mode=like.padding_mode,
            device="meta",
        )
        layer.cores = nn.ParameterList([core.detach().clone() for core in cores])
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    def macs(self, input: Tensor) -> int:
        """Multiply-accumulates for input [B, I, H, W] or [I, H, W]: of the chain, or of the dense kernel if fewer."""
        images = len(input) if input.dim() == 4 else 1
        return images * min(chain_macs(list(self.cores), self.stages, self._options, self.geometry, input))

    def to_dense(self) -> Tensor:
        """The kernel [O, I, kh, kw], differentiable."""
        return self._kernel(list(self.cores))

    def _kernel(self, cores: Sequence[Tensor]) -> Tensor:
        return to_matrix(cores).reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def _from(self, cores: Sequence[Tensor]) -> Self:
        return self.from_cores(cores, self, self.stages)

    def stage_weights(self) -> list[Tensor]:
        """The kernel [out, in, a, b] of every stage, differentiable."""
        return self._stage_weights(list(self.cores))

    def _stage_weights(self, cores: Sequence[Tensor]) -> list[Tensor]:
        weights = []
        for k, (core, (a, b)) in enumerate(zip(cores, self.stages, strict=True)):
            r, m, _, s = core.shape
            channels = self.in_channels if k == 0 else 1
            split = core.reshape(r, m, channels, a, b, s).permute(1, 5, 0, 2, 3, 4)
            weights.append(split.reshape(m * s, r * channels, a, b))
        return weights

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] or [I, H, W] to [B, O, H', W'] or [O, H', W']."""
        if is_watched():
            return self._chain(input, self.stage_weights(), self.bias)
        # What takes longer than a few look-ups here is felt in small layers at batch 1.
        if not _is_grad_enabled() and not _is_any_autocast_enabled() and type(input) is Tensor:
            run = self._prepared.runs.get(_call(input, None))
            if run is not None:
                cores, bias = self._held()
                if run.holds(cores):
                    return run.content(input, bias)
        return self._any_forward(input)

    def _any_forward(self, input: Tensor) -> Tensor:
        """Every case but the repeated call at inference."""
        if type(input) not in (Tensor, nn.Parameter):
            return self._chain(input, self.stage_weights(), self.bias)
        cores, bias = self._held()
        tensors = (input, *cores) if bias is None else (input, *cores, bias)
        trained = _is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if not trained and can_keep(cores):
            cast = autocast_dtype(input)
            make = partial(self._prepare, input, cores, cast or cores[0].dtype)
            return self._prepared.run(_call(input, cast), cores, make)(input, bias)
        if self._macs(input) < TRAINING_MARGIN:
            return self._chain(input, self._stage_weights(cores), bias)
        return self._folded(input, self._kernel(cores), bias)

    def _prepare(self, x: Tensor, cores: list[Tensor], dtype: torch.dtype) -> Derived:
        way, rows = self._way(x.to(dtype), cores), is_in_rows(x)
        make = partial(self._operands, way, cores, dtype, rows)
        # all input sizes share them
        held = self._prepared.operands((way, dtype, rows), cores, self._copied(way, cores, dtype), make)
        return held.carrying(self._run(way, held.content))

    def _run(self, way: Way, weights: list[Tensor]) -> Callable[..., Tensor]:
        """What computes y from x and a bias."""
        return stages_run(weights, self._folded_options if way.folded else self._options, self.geometry)

    def _operands(self, way: Way, cores: list[Tensor], dtype: torch.dtype, rows: bool) -> list[Tensor]:
        """What each stage multiplies by; a matrix is a view of its core, where that has the dtype."""
        layout = torch.channels_last if rows else torch.contiguous_format
        plain = [core.detach() for core in cores]

        def kernel(weight: Tensor) -> Tensor:
            return weight.to(dtype).clone(memory_format=layout)

        if way.folded:
            folded = self._kernel(plain)
            return [folded.flatten(1).t().to(dtype) if way.products else kernel(folded)]
        weights = self._stage_weights(plain)
        return [
            _matrix(core).to(dtype) if way.products and one else kernel(weight)
            for core, weight, one in zip(plain, weights, self._are_products(), strict=True)
        ]

    def _copied(self, way: Way, cores: list[Tensor], dtype: torch.dtype) -> list[int]:
        """Of which cores the operands hold values, rather than views."""
        if way.folded or not way.products or cores[0].dtype != dtype:
            return list(range(len(cores)))
        return [k for k, one in enumerate(self._are_products()) if not one]

    def _are_products(self) -> list[bool]:
        return [is_product(*stage) for stage in zip(self.stages, self._options, strict=True)]

    def plan(self, input: Tensor, *, training: bool) -> str:
        """How an input like this is multiplied: 'chain' or 'folded'; see `compresskd.tt.execution.policy`.

        At inference with ', by products' where 1x1 stages are no convolutions.
        """
        if training:
            return str(Way(folded=self._macs(input) >= TRAINING_MARGIN))
        x = input.detach().to(autocast_dtype(input) or self.cores[0].dtype)
        return str(self._way(x, list(self.cores)))

    def _way(self, x: Tensor, cores: list[Tensor]) -> Way:
        macs = self._macs(x)
        if source_of(training=False) == FIXED:
            return Way(folded=macs >= FIXED_MARGIN)
        found = ways(self._are_products() if x.dim() == 4 else [False], macs)
        if len(found) == 1:
            return found[0]

        def runs() -> dict[Way, Callable[[], object]]:
            return {way: trial(way) for way in found}

        def trial(way: Way) -> Callable[[], object]:
            make = partial(self._operands, way, cores, x.dtype, is_in_rows(x))
            held = Derived(cores, self._copied(way, cores, x.dtype) if can_keep(cores) else (), make)
            run = self._run(way, held.content)
            # a call asks first whether what was copied from the cores still holds
            return lambda: held.holds(cores) and run(x)

        shapes = [tuple(weight.shape) for weight in self._stage_weights([core.detach() for core in cores])]
        named = f"{shapes} {self.geometry}" + ("" if promised() is None else CONSTANT)
        return fastest(x, runs, named, Way(folded=True))

    def _macs(self, x: Tensor) -> float:
        """Multiplications of the chain over those of the folded kernel."""
        chain, dense = chain_macs(list(self.cores), self.stages, self._options, self.geometry, x)
        return chain / max(dense, 1)

    def _chain(self, x: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
        return run_stages(x, weights, bias, self._options, self.geometry)

    def _folded(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return run_stages(x, [weight], bias, self._folded_options, self.geometry)


def _call(x: Tensor, cast: torch.dtype | None) -> tuple[Any, ...]:
    """What a call at inference, cast to this dtype or to none, has in common with others that are computed alike."""
    return x.shape, x.stride(), x.dtype, cast, _get_num_threads(), said(), promised() is None


def _matrix(core: Tensor) -> Tensor:
    """The core [r, m, n, s] of a 1x1 stage as [in, out]."""
    r, m, n, s = core.shape
    return core.permute(0, 2, 1, 3).reshape(r * n, m * s)
