"""How each kind of plan runs: prepared for the repeated call at inference, or differentiable in training."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.decompose.cores import merge, to_matrix
from compresskd.tt.execution import rows
from compresskd.tt.execution.chain import Chain, ChainProduct
from compresskd.tt.execution.contraction import Plan, matrices
from compresskd.tt.execution.streamed import StreamedLinear, best_cut

Run = Callable[[Tensor, Tensor | None], Tensor]


def inference_run(chain: Chain, Gs: Sequence[Tensor], num_rows: int) -> Run:
    """What takes x [num_rows, N] and a bias to [num_rows, M] by a chain plan whose groups are ready."""
    if chain.plan.columns or 0 < chain.plan.chunk < num_rows:
        return lambda x, bias: chain.forward(x, Gs, bias)
    return rows.prepare(Gs, chain.steps, num_rows)


def groups(cores: Sequence[Tensor], chain: Chain, dtype: torch.dtype) -> list[Tensor]:
    """The matrices that the plan's steps multiply by, for inference."""
    detached = [core.detach() for core in cores]
    Gs = matrices(detached, chain.plan.cuts, from_right=chain.plan.from_right)
    return [G.to(dtype).contiguous() for G in Gs]


def copied_cores(cores: Sequence[Tensor], plan: Plan, dtype: torch.dtype) -> set[int]:
    """The cores, by position, of which `groups` holds copied values: all but those that it only views."""
    copied, edges = set[int](), (0, *plan.cuts, len(cores))
    for start, stop in pairwise(edges):
        r, m, n, s = cores[start].shape
        # from the left a core [r, m, n, s] is read as [m, s, r, n]: in place only where that moves no numbers
        moved = not plan.from_right and not (r == 1 and n == 1) and not (m == 1 and s == 1)
        if stop - start > 1 or moved or cores[start].dtype != dtype:
            copied.update(range(start, stop))
    return copied


def folded_weight(cores: Sequence[Tensor], num_inputs: int, num_outputs: int, dtype: torch.dtype) -> Tensor:
    """The dense weight [num_outputs, num_inputs], for inference."""
    weight = to_matrix([core.detach() for core in cores])[:num_outputs, :num_inputs]
    return weight.to(dtype).clone(memory_format=torch.contiguous_format)


def training_run(
    chain: Chain, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int, missing: int = 0
) -> Tensor:
    """x [B, N - missing] to [B, num_outputs] with a graph, by any plan."""
    if chain.plan.kind == "folded":
        weight = to_matrix(cores)
        if weight.shape != (num_outputs, x.shape[1]):
            weight = weight[:num_outputs, : x.shape[1]]
        return F.linear(x, weight, bias)
    if missing:
        x = F.pad(x, (0, missing))
    if chain.plan.kind == "streamed":
        place = best_cut([tuple(core.shape) for core in cores])  # pyright: ignore[reportArgumentType]
        left, right = merge(cores[:place])[0], merge(cores[place:])[..., 0].transpose(0, 1)
        y = StreamedLinear.apply(x, left.contiguous(), right.contiguous())
        return cut(y, bias, num_outputs)  # pyright: ignore[reportArgumentType]
    inside = bias if chain.num_outputs == num_outputs else None
    if chain.plan.kind == "recompute":
        y: Any = ChainProduct.apply(chain, x, inside, *cores)
    else:
        Gs = matrices(cores, chain.plan.cuts, from_right=chain.plan.from_right)
        y, _ = rows.forward(x, Gs, chain.steps, inside)
    return y if chain.num_outputs == num_outputs else cut(y, bias, num_outputs)


def cut(y: Tensor, bias: Tensor | None, num_outputs: int) -> Tensor:
    """y [..., M] to [..., num_outputs], the bias added."""
    y = y if y.shape[-1] == num_outputs else y[..., :num_outputs]
    return y if bias is None else y + bias
