"""TT-SVD of a matrix [M, N] in given modes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compresskd.tt.cores import clip_ranks


def tt_svd(
    weight: Tensor, input_dims: Sequence[int], output_dims: Sequence[int], ranks: Sequence[int]
) -> list[Tensor]:
    """Cores [r_{k-1}, m_k, n_k, r_k] of `weight` [M, N] by successive SVDs (Oseledets 2011, algorithm 1)."""
    d = len(input_dims)
    ranks = clip_ranks(ranks, input_dims, output_dims)
    tensor = weight.detach().double().reshape(*output_dims, *input_dims)
    rest = tensor.permute([axis for k in range(d) for axis in (k, d + k)]).reshape(1, -1)
    cores = []
    for k in range(d - 1):
        rest = rest.reshape(rest.shape[0] * output_dims[k] * input_dims[k], -1)
        U, S, Vh = torch.linalg.svd(rest, full_matrices=False)
        rank = ranks[k]
        cores.append(U[:, :rank].reshape(-1, output_dims[k], input_dims[k], rank))
        rest = S[:rank, None] * Vh[:rank]
    cores.append(rest.reshape(-1, output_dims[-1], input_dims[-1], 1))
    return [core.to(weight.dtype).contiguous() for core in cores]
