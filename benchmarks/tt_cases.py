"""Cases and contenders of the tensor-train benchmarks: modes by pattern, peers on the same cores, timing."""

import random
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from compresskd.tt import TTLinear
from compresskd.tt.decompose.modes import nearest_factors

PATTERNS = {
    "svd": (0.0, 1.0),
    "opposed2": (1 / 3, 2 / 3),
    "balanced2": (0.5, 0.5),
    "opposed3": (1 / 6, 1 / 3, 1 / 2),
    "balanced3": (1 / 3, 1 / 3, 1 / 3),
    "opposed4": (0.1, 0.2, 0.3, 0.4),
}
CASE_SECONDS, MOST_ROUNDS = 0.25, 60
Run = Callable[[], object]


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, the runs interleaved in changing order; short ones repeat to a millisecond.

    Short cases take more rounds than asked for, to a quarter of a second, so that no single disturbance decides.
    """
    order, repeats, spent = random.Random(0), {}, 0.0
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        repeats[name] = max(1, min(100, int(1e-3 / once)))
        spent += once * (1 + repeats[name])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(rounds, min(MOST_ROUNDS, int(CASE_SECONDS / spent)))):
        for name in order.sample(list(runs), len(runs)):
            run = runs[name]
            run()  # its operands come back into the cache, whoever ran before
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: median(values) for name, values in times.items()}


def t3nsor_forward(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Left to right by one large product and permutation for each core, as t3nsor contracts."""
    B, d = x.shape[0], len(cores)
    z = x.reshape(B, *[core.shape[2] for core in cores])
    z = z.unsqueeze(-1)
    for core in cores:
        # z [B, n_k, ..., n_d, m_1, ..., m_{k-1}, r]: contract n_k and r, append m_k.
        z = torch.tensordot(z, core, dims=([1, z.dim() - 1], [2, 0]))
    return z.reshape(B, -1) if d else z


def peers(layer: TTLinear, x: Tensor, training: bool) -> dict[str, Run]:
    """Runs of what is installed, on the same cores, their output checked."""
    found: dict[str, Run] = {}
    cores = [core.detach().clone().requires_grad_(training) for core in layer.cores]
    found["t3nsor"] = step(lambda: t3nsor_forward(x, cores), training)
    try:
        import tltorch
    except ImportError:
        return found
    ranks = [1, *layer.ranks, 1]
    for implementation in ("factorized", "reconstructed"):
        peer = tltorch.FactorizedLinear(
            layer.input_dims,
            layer.output_dims,
            bias=False,
            factorization="blocktt",
            rank=ranks,
            implementation=implementation,
        )
        with torch.no_grad():
            for theirs, ours in zip(peer.weight.factors, layer.cores, strict=True):
                theirs.copy_(ours)
            assert torch.allclose(peer(x), layer(x), rtol=1e-3, atol=1e-3)
        found[f"tltorch_{implementation}"] = step(lambda peer=peer: peer(x), training)
    try:
        import torchtt
    except ImportError:
        return found
    other = torchtt.nn.LinearLayerTT(
        list(layer.input_dims), list(layer.output_dims), ranks, dtype=torch.float32
    )
    shaped = x.reshape(x.shape[0], *layer.input_dims)
    found["torchtt"] = step(lambda: other(shaped), training)
    return found


def step(run: Callable[[], Tensor], training: bool) -> Run:
    """One call, or with `training` one forward and backward."""
    if not training:
        return torch.no_grad()(run)

    def both() -> None:
        y = run()
        y.backward(torch.ones_like(y))

    return both


def tt_layer(shape: tuple[int, int], pattern: str, rank: int) -> TTLinear:
    """A fresh layer of (inputs, outputs) whose modes share the sizes as the pattern says."""
    num_inputs, num_outputs = shape
    share = PATTERNS[pattern]
    dims = nearest_factors(num_inputs, share, padding=False)
    out = nearest_factors(num_outputs, tuple(reversed(share)), padding=False)
    return TTLinear(dims, out, rank, bias=False)


def use_opt_einsum() -> None:
    """Lets tensorly's contractions plan their order, where opt_einsum is installed."""
    try:
        from tensorly import plugins

        plugins.use_opt_einsum()
    except ImportError:
        pass
