"""Tensor-train embeddings of 30,720 x 768 against dense ones and tensorly-torch's on the same cores.

python benchmarks/tt_embedding.py [--quick] [--threads 1,2]
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from tt_cases import medians

from compresskd.tt import TTEmbedding

VOCABULARY, DIM = (16, 20, 96), (4, 12, 16)


def main() -> None:
    """Ratios of medians, above 1 where compresskd is faster, forward and forward with backward."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", default="1")
    options = parser.parse_args()
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        for rank in (16,) if options.quick else (4, 16, 64):
            for tokens in (256,) if options.quick else (256, 4096):
                _line(rank, tokens, threads, 3 if options.quick else 9)


def _line(rank: int, tokens: int, threads: int, rounds: int) -> None:
    ours = TTEmbedding(30720, 768, VOCABULARY, DIM, rank)
    low_rank = TTEmbedding(30720, 768, (30720, 1), (1, 768), rank)
    modules: dict[str, nn.Module] = {"ours": ours, "svd": low_rank, "dense": nn.Embedding(30720, 768)}
    ids = torch.randint(0, 30720, (tokens,))
    try:
        import tltorch

        peer = tltorch.FactorizedEmbedding(
            30720,
            768,
            auto_tensorize=False,
            tensorized_num_embeddings=VOCABULARY,
            tensorized_embedding_dim=DIM,
            factorization="blocktt",
            rank=[1, *ours.ranks, 1],
        )
        with torch.no_grad():
            for theirs, core in zip(peer.weight.factors, ours.cores, strict=True):
                theirs.copy_(core)
            assert torch.allclose(peer(ids), ours(ids), atol=1e-3)
        modules["tltorch"] = peer
    except ImportError:
        pass
    with torch.no_grad():
        forward = medians({name: (lambda m=module: m(ids)) for name, module in modules.items()}, rounds)
    training = medians({name: _step(module, ids) for name, module in modules.items()}, rounds)
    for mode, times in (("forward", forward), ("training", training)):
        cells = "  ".join(f"{name} {times[name] / times['ours']:7.2f}" for name in times if name != "ours")
        print(f"{threads} thread(s)  rank {rank:<3} {tokens:5} tokens  {mode:<9} {cells}", flush=True)


def _step(module: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        module.zero_grad(set_to_none=True)
        y = module(ids)
        y.backward(torch.ones_like(y))

    return step


if __name__ == "__main__":
    main()
