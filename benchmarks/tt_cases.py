"""Cases and contenders of the tensor-train benchmarks: modes by pattern, peers on the same cores, timing."""

import math
import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor, nn

from compresskd.tt import TTLinear, factorize
from compresskd.tt.decompose.modes import nearest_factors
from compresskd.tt.execution.contraction import least_macs

PATTERNS = {
    "svd": (0.0, 1.0),
    "opposed2": (1 / 3, 2 / 3),
    "balanced2": (0.5, 0.5),
    "opposed3": (1 / 6, 1 / 3, 1 / 2),
    "balanced3": (1 / 3, 1 / 3, 1 / 3),
    "opposed4": (0.1, 0.2, 0.3, 0.4),
}
HAND_CHOSEN = {  # as people choose them: two cores opposed, three alike
    ((784, 256), "hand2"): ((4, 196), (64, 4)),
    ((784, 256), "hand3"): ((7, 16, 7), (4, 16, 4)),
    ((1024, 1024), "hand2"): ((4, 256), (256, 4)),
    ((1024, 1024), "hand3"): ((8, 16, 8), (8, 16, 8)),
    ((768, 3072), "hand2"): ((4, 192), (768, 4)),
    ((768, 3072), "hand3"): ((8, 8, 12), (16, 16, 12)),
    ((4096, 4096), "hand2"): ((4, 1024), (1024, 4)),
    ((4096, 4096), "hand3"): ((16, 16, 16), (16, 16, 16)),
}
REAL_SHAPES = (  # (inputs, outputs) of linear layers
    (384, 384), (384, 1536), (1536, 384),  # MiniLM
    (768, 768), (768, 3072), (3072, 768), (768, 2304), (768, 1000),  # BERT, ViT-B, GPT-2
    (192, 192), (192, 576), (192, 768), (768, 192),  # ViT-tiny
    (576, 576), (576, 192), (576, 1536), (1536, 576),  # LLaMA-like of 135M parameters
    (512, 1000), (2048, 1000),  # ResNet-18, ResNet-50
    (1024, 1024), (1024, 4096),  # BERT-large
)  # fmt: skip
CASE_SECONDS, MOST_ROUNDS = 0.25, 60
Run = Callable[[], object]


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, the runs interleaved in changing order; short ones repeat to a millisecond.

    Short cases take more rounds than asked for, to a quarter of a second, so that no single disturbance decides.
    """
    order, repeats, spent = random.Random(0), {}, 0.0
    # with one thread what others do on the machine is not counted
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for name, run in runs.items():
        run()
        start = clock()
        run()
        once = clock() - start
        repeats[name] = max(1, min(100, int(1e-3 / once)))
        spent += once * (1 + repeats[name])
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(rounds, min(MOST_ROUNDS, int(CASE_SECONDS / spent)))):
        for name in order.sample(list(runs), len(runs)):
            run = runs[name]
            run()  # its operands come back into the cache, whoever ran before
            start = clock()
            for _ in range(repeats[name]):
                run()
            times[name].append((clock() - start) / repeats[name])
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
    found["t3nsor"] = step(lambda: t3nsor_forward(x, cores), training, [x, *cores])
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
        found[f"tltorch_{implementation}"] = step(
            lambda peer=peer: peer(x), training, [x, *peer.parameters()]
        )
    try:
        import torchtt
    except ImportError:
        return found
    other = torchtt.nn.LinearLayerTT(
        list(layer.input_dims), list(layer.output_dims), ranks, dtype=torch.float32
    )
    shaped = x.reshape(x.shape[0], *layer.input_dims)
    found["torchtt"] = step(lambda: other(shaped), training, [x, *other.parameters()])
    return found


def step(run: Callable[[], Tensor], training: bool, leaves: Sequence[Tensor] = ()) -> Run:
    """One call, or with `training` one forward and backward, the gradients of `leaves` cleared before."""
    if not training:
        return torch.no_grad()(run)

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        y = run()
        y.backward(torch.ones_like(y))

    return both


def least_work(layer: TTLinear, rows: int, training: bool) -> float:
    """The least multiply-adds of all contractions over those of the dense layer.

    The dense weight is one of them: at inference it is at hand, in training it is made of the cores each time, and
    its gradient taken back to them.
    """
    num_outputs, num_inputs = layer.dense_shape
    chain = least_macs([core.shape for core in layer.cores]) / (num_outputs * num_inputs)
    if not training:
        return min(1.0, chain)
    making, left = 0, math.prod(layer.cores[0].shape[:3])
    for r, m, n, s in [core.shape for core in layer.cores[1:]]:
        making += left * r * m * n * s
        left *= m * n
    return min(1.0 + making / (rows * num_outputs * num_inputs), chain)


def tt_layer(shape: tuple[int, int], pattern: str, rank: int) -> TTLinear:
    """A fresh layer of (inputs, outputs) whose modes share the sizes as the pattern says."""
    num_inputs, num_outputs = shape
    if (shape, pattern) in HAND_CHOSEN:
        return TTLinear(*HAND_CHOSEN[shape, pattern], rank, bias=False)
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


@lru_cache(maxsize=1)
def picked_layer(shape: tuple[int, int], share: float) -> nn.Module:
    """What `factorize` makes of a dense layer whose k-th singular value is proportional to 1 / k^0.7."""
    num_inputs, num_outputs = shape
    generator = torch.Generator().manual_seed(0)
    short = min(shape)
    left = torch.linalg.qr(torch.randn(num_outputs, short, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(num_inputs, short, generator=generator))[0]
    dense = nn.Linear(num_inputs, num_outputs, bias=False)
    with torch.no_grad():
        dense.weight.copy_(left / torch.arange(1, short + 1) ** 0.7 @ right.t())
    layer = factorize(dense, num_parameters=int(share * num_inputs * num_outputs))
    assert isinstance(layer, nn.Module)
    return layer
