"""TT-SVD of a 4096 x 4096 matrix in three cores: time and error against tensorly's, and by each route.

python benchmarks/tt_svd.py [--quick] [--threads 1,2]
"""

import argparse
import time
import warnings

import torch
from torch import Tensor

from compresskd.tt.decompose.cores import to_matrix
from compresskd.tt.decompose.tt_svd import tt_svd

MODES = (
    ((4, 16, 64), (64, 16, 4)),
    ((16, 16, 16), (16, 16, 16)),
    ((64, 64), (64, 64)),
    ((1, 4096), (4096, 1)),
)


def main() -> None:
    """One line for each spectrum and choice of modes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1024 x 1024, three cores")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        for name, weight in _matrices(1024 if options.quick else 4096).items():
            for modes in [((4, 8, 32), (32, 8, 4))] if options.quick else MODES:
                _line(name, weight, *modes, options.rank, threads)


def _matrices(size: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    flat = torch.randn(size, size)
    scale = torch.arange(1, size + 1.0) ** -0.7
    return {"flat": flat, "decaying": (torch.randn(size, size) * scale) @ torch.randn(size, size)}


def _line(
    name: str,
    weight: Tensor,
    input_dims: tuple[int, ...],
    output_dims: tuple[int, ...],
    rank: int,
    threads: int,
) -> None:
    ranks = [rank] * (len(input_dims) - 1)
    ours = min(
        _timed(lambda: tt_svd(weight, input_dims, output_dims, ranks=ranks).cores)[0] for _ in range(3)
    )
    error = _error(to_matrix(tt_svd(weight, input_dims, output_dims, ranks=ranks).cores), weight)
    line = f"{threads} thread(s) {name:<9} {input_dims} to {output_dims}: {ours:6.2f} s, error {error:.6f}"
    if len(input_dims) > 2:
        theirs, dense = _tensorly(weight, input_dims, output_dims, ranks)
        line += f"; tensorly {theirs:6.2f} s, error {_error(dense, weight):.6f}: {theirs / ours:.1f}x"
    print(line, flush=True)


def _error(approximation: Tensor, weight: Tensor) -> float:
    return float((approximation.double() - weight.double()).norm() / weight.double().norm())


def _timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _tensorly(
    weight: Tensor, input_dims: tuple[int, ...], output_dims: tuple[int, ...], ranks: list[int]
) -> tuple[float, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorly
        from tensorly.decomposition import tensor_train_matrix

        tensor = weight.reshape(*output_dims, *input_dims)
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            seconds, factors = _timed(lambda: tensor_train_matrix(tensor, rank=[1, *ranks, 1]))
            return seconds, factors.to_matrix()


if __name__ == "__main__":
    main()
