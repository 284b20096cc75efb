"""What every layer in tensor-train format shares: its cores, their count, and their changes of form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from compresskd.tt.decompose.cores import balance, clip_ranks, core_shapes, orthogonalize, round_cores
from compresskd.tt.execution.cached_operands import Prepared


class TensorTrainLayer(nn.Module, ABC):
    """A layer whose weight is the product of `cores` [r_{k-1}, m_k, n_k, r_k], k = 1 ... d, r_0 = r_d = 1.

    Args:
        input_dims: n_k.
        output_dims: m_k, as many.
        tt_rank: cap of every inner bond r_1 ... r_{d-1}.
        ranks: one cap for each instead. Both are clipped to what the unfoldings support.
        device: of the cores, whose values are not set yet.
        dtype: the same.

    Raises:
        ValueError: `tt_rank` is below 1.
    """

    def __init__(
        self,
        input_dims: Sequence[int],
        output_dims: Sequence[int],
        tt_rank: int,
        ranks: Sequence[int] | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if tt_rank < 1:
            raise ValueError(f"expected tt_rank >= 1, got {tt_rank}")
        wanted = [tt_rank] * (len(input_dims) - 1) if ranks is None else ranks
        shapes = core_shapes(input_dims, output_dims, clip_ranks(wanted, input_dims, output_dims))
        self.cores = nn.ParameterList([torch.empty(shape, device=device, dtype=dtype) for shape in shapes])
        self._names = tuple(str(k) for k in range(len(shapes)))
        self._prepared = Prepared()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d - 1 inner bonds."""
        return tuple(core.shape[0] for core in list(self.cores)[1:])

    @property
    def num_parameters(self) -> int:
        """Of all cores, and of the bias if there is one."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    @abstractmethod
    def num_parameters_dense(self) -> int:
        """Of the dense layer that this one stands for."""

    @property
    def inference_bytes(self) -> int:
        """Memory that inference keeps beyond the parameters: what is merged or folded, if anything."""
        return self._prepared.num_bytes

    def round(
        self, rank: int | None = None, *, ranks: Sequence[int] | None = None, tolerance: float | None = None
    ) -> Self:
        """A layer of fewer ranks for nearly the same weight, which is never formed: see `round_cores`.

        `rank` caps every bond, `ranks` each by itself; `tolerance` bounds the relative error.
        """
        if rank is not None and ranks is None:
            ranks = [rank] * (len(self.cores) - 1)
        return self._with(balance(round_cores(list(self.cores), ranks=ranks, tolerance=tolerance)))

    def orthogonalize(self, center: int = 0) -> Self:
        """A layer of the same weight, cores left of `center` left-orthogonal and those right of it right-orthogonal."""
        return self._with(orthogonalize([core.detach() for core in self.cores], center))

    def balance(self) -> Self:
        """A layer of the same weight whose cores share each bond's singular values evenly: see `balance`."""
        return self._with(balance(list(self.cores)))

    def clear_prepared(self) -> None:
        """Forget what inference keeps."""
        self._prepared.clear()

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; what inference keeps is dropped on the way to training."""
        if mode:
            self._prepared.clear()
        return super().train(mode)

    def _with(self, cores: Sequence[Tensor]) -> Self:
        """This layer with other cores."""
        return self._from(cores).train(self.training)

    @abstractmethod
    def _from(self, cores: Sequence[Tensor]) -> Self:
        """A new layer of the same sizes and options that holds these cores."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._prepared.clear()
        # to(memory_format=torch.channels_last) means images and kernels; a core in that order is copied at each call
        return super()._apply(lambda tensor: fn(tensor).contiguous(), recurse)
