"""Tensor-train linear layers against dense, tensorly-torch, torchTT and t3nsor's way, side by side in one process.

    python benchmarks/tt_linear.py [--quick] [--threads 1,2] [--shapes 784x256,4096x4096] [--training] [--regret]

Peers run on the same cores where they are installed. Every figure is a ratio of the medians of interleaved runs:
above 1, compresskd is faster. The plan is the one that the cost model picks.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean, median, quantiles

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt import TTLinear
from compresskd.tt.calibration import machine
from compresskd.tt.contraction import matrices, run_chain, steps
from compresskd.tt.modes import nearest_factors
from compresskd.tt.planner import bucket, choose, rank_plans

PATTERNS = {
    "svd": (0.0, 1.0),
    "opposed2": (1 / 3, 2 / 3),
    "balanced2": (0.5, 0.5),
    "opposed3": (1 / 6, 1 / 3, 1 / 2),
    "balanced3": (1 / 3, 1 / 3, 1 / 3),
    "opposed4": (0.1, 0.2, 0.3, 0.4),
}
Run = Callable[[], object]


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, the runs interleaved; short ones repeat to a millisecond."""
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, min(100, int(1e-3 / (time.perf_counter() - start))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
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
    found["t3nsor"] = _step(lambda: t3nsor_forward(x, cores), x, training)
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
        found[f"tltorch_{implementation}"] = _step(lambda peer=peer: peer(x), x, training)
    try:
        import torchtt
    except ImportError:
        return found
    other = torchtt.nn.LinearLayerTT(
        list(layer.input_dims), list(layer.output_dims), ranks, dtype=torch.float32
    )
    shaped = x.reshape(x.shape[0], *layer.input_dims)
    found["torchtt"] = _step(lambda: other(shaped), x, training)
    return found


def _step(run: Callable[[], Tensor], x: Tensor, training: bool) -> Run:
    if not training:
        return torch.no_grad()(run)

    def step() -> None:
        y = run()
        y.backward(torch.ones_like(y))

    return step


def bench(
    shape: tuple[int, int], pattern: str, rank: int, B: int, options: argparse.Namespace
) -> dict[str, float]:
    """Ratios of one case."""
    num_inputs, num_outputs = shape
    share = PATTERNS[pattern]
    dims = nearest_factors(num_inputs, share, padding=False)
    out = nearest_factors(num_outputs, tuple(reversed(share)), padding=False)
    layer, dense = TTLinear(dims, out, rank, bias=False), nn.Linear(num_inputs, num_outputs, bias=False)
    with torch.no_grad():
        dense.weight.copy_(layer.to_dense())
    x = torch.randn(B, num_inputs, requires_grad=options.training)
    runs = {
        "ours": _step(lambda: layer(x), x, options.training),
        "dense": _step(lambda: dense(x), x, options.training),
        **peers(layer, x, options.training),
    }
    times = medians(runs, options.rounds)
    best = min((times[k] for k in times if k.startswith("tltorch")), default=math.nan)
    others = min((times[k] for k in ("t3nsor", "torchtt") if k in times), default=math.nan)
    result = {"dense": times["dense"], "tltorch": best, "left_to_right": others}
    ratios = {name: value / times["ours"] for name, value in result.items()}
    if options.regret and not options.training:
        ratios["regret"] = regret(layer, x.detach(), dense.weight.detach(), options.rounds)
    return ratios


def regret(layer: TTLinear, x: Tensor, weight: Tensor, rounds: int) -> float:
    """Seconds of the plan picked over those of the best plan in hindsight."""
    cores = [core.detach() for core in layer.cores]
    shapes = tuple((c.shape[0], c.shape[1], c.shape[2], c.shape[3]) for c in cores)
    threads, rows = torch.get_num_threads(), bucket(x.shape[0])
    ranked = rank_plans(shapes, rows, training=False, machine=machine("cpu", torch.float32, threads))
    picked = choose(shapes, rows, training=False, device_type="cpu", dtype=torch.float32, num_threads=threads)
    plans = [cost.plan for cost in ranked[:10]]
    plans += [cost.plan for cost in ranked[10:] if cost.plan.kind == "folded"]
    runs: dict[str, Run] = {}
    for plan in plans:
        if plan.kind == "folded":
            runs[str(plan)] = lambda: F.linear(x, weight)
            continue
        Gs = [G.contiguous() for G in matrices(cores, plan.cuts, from_right=plan.from_right)]
        path = steps(shapes, plan.cuts, from_right=plan.from_right)
        runs[str(plan)] = lambda Gs=Gs, path=path, plan=plan: run_chain(x, Gs, path, plan, None)
    with torch.inference_mode():
        times = medians(runs, rounds)
    return times[str(picked)] / min(times.values())


def main() -> None:
    """Print one line for each case and the geometric means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few cases, few rounds")
    parser.add_argument("--training", action="store_true", help="forward with backward")
    parser.add_argument("--regret", action="store_true", help="the pick against the best plan in hindsight")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--shapes", default="784x256,1024x1024,768x3072,4096x4096")
    parser.add_argument("--modes", default=",".join(PATTERNS))
    parser.add_argument("--ranks", default="4,16,64")
    parser.add_argument("--batch", default="1,32,256,2048")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.quick:
        options.modes, options.ranks, options.batch, options.rounds = (
            "svd,opposed3,balanced2",
            "4,16",
            "1,32,256",
            5,
        )
    try:
        from tensorly import plugins

        plugins.use_opt_einsum()
    except ImportError:
        pass
    cases = [
        ((int(a), int(b)), pattern, int(rank), int(B))
        for a, b in (shape.split("x") for shape in options.shapes.split(","))
        for pattern in options.modes.split(",")
        for rank in options.ranks.split(",")
        for B in options.batch.split(",")
    ]
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        _table(cases, threads, options)


def _table(
    cases: Sequence[tuple[tuple[int, int], str, int, int]], threads: int, options: argparse.Namespace
) -> None:
    mode = "forward with backward" if options.training else "forward"
    print(f"\n{mode}, {threads} thread(s), ratios of medians (above 1: compresskd is faster)")
    rows: list[tuple[int, dict[str, float]]] = []
    for shape, pattern, rank, B in cases:
        ratios = bench(shape, pattern, rank, B, options)
        rows.append((B, ratios))
        cells = "  ".join(f"{name} {value:8.2f}" for name, value in ratios.items())
        print(f"{shape[0]}x{shape[1]:<5} {pattern:<10} rank {rank:<3} batch {B:<5} {cells}", flush=True)
    for name in rows[0][1]:
        _summary(name, [(B, ratios[name]) for B, ratios in rows if not math.isnan(ratios[name])])


def _summary(name: str, values: list[tuple[int, float]]) -> None:
    if not values:
        return
    every = [value for _, value in values]
    if name == "regret":
        print(f"regret: mean {fmean(every):.2f}, 90th percentile {quantiles(every, n=10)[-1]:.2f}")
        return
    batches = sorted({B for B, _ in values})
    by_batch = ", ".join(
        f"batch {B}: {geometric_mean([v for b, v in values if b == B]):.2f}" for B in batches
    )
    print(f"against {name}: geometric mean {geometric_mean(every):.2f}, least {min(every):.2f} ({by_batch})")


if __name__ == "__main__":
    main()
