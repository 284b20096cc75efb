"""A 4096 x 4096 layer at rank 16 in the modes that the search picks: against dense, against tensorly-torch, memory.

    python benchmarks/tt_large.py [--quick] [--threads 1,2] [--parts speed,parameters,memory,rate]

speed: forward and training against dense. parameters: against tensorly-torch in its own default modes (16, 16, 16) at
the same number of parameters, the better of its implementations. memory: what one training step allocates at its
peak. rate: the time of plain products of the same shapes over that of the layer.
"""

import argparse
import math
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tt_cases import Run, medians, step, tt_layer, use_opt_einsum

from compresskd.tt import TTLinear
from compresskd.tt.execution import product
from compresskd.tt.execution.chain import Chain
from compresskd.tt.execution.choice import choose
from compresskd.tt.execution.contraction import Plan, Shapes
from compresskd.tt.execution.planner import bucket
from compresskd.tt.execution.policy import FIXED, MEASURED

SIZE, RANK = 4096, 16
PATTERNS = {"svd": "the search's pick", "opposed3": "its pick of three cores"}


def main() -> None:
    """The parts asked for, one line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, batches 1 to 256")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--parts", default="speed,parameters,memory,rate")
    parser.add_argument("--modes", default=",".join(PATTERNS), help="of speed and parameters")
    options = parser.parse_args()
    use_opt_einsum()
    batches, rounds = ((1, 32, 256), 3) if options.quick else ((1, 32, 256, 2048), 7)
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        if "speed" in options.parts or "parameters" in options.parts:
            for pattern in options.modes.split(","):
                _speed(pattern, PATTERNS[pattern], batches, rounds, threads, options.parts)
        if "rate" in options.parts:
            _rate(batches[1:], rounds, threads)
    if "memory" in options.parts:
        _memory(2048, options.quick)


def _speed(pattern: str, name: str, batches: tuple[int, ...], rounds: int, threads: int, parts: str) -> None:
    layer, dense = tt_layer((SIZE, SIZE), pattern, RANK), nn.Linear(SIZE, SIZE, bias=False)
    print(f"\n{layer.input_dims} to {layer.output_dims} ({name}), {layer.num_parameters} parameters")
    for training in (False, True):
        for B in batches[1:] if training else batches:
            x = torch.randn(B, SIZE, requires_grad=training)
            runs: dict[str, Run] = {"ours": step(lambda x=x: layer(x), training, [x, *layer.parameters()])}
            if "speed" in parts:
                runs["dense"] = step(lambda x=x: dense(x), training, [x, *dense.parameters()])
            if "parameters" in parts:
                runs |= _tltorch(layer, x, training)
            times = medians(runs, rounds)
            theirs = min((v for k, v in times.items() if k.startswith("tltorch")), default=math.nan)
            print(
                f"{threads} thread(s) {'training' if training else 'forward':<8} batch {B:<5} "
                f"{1e3 * times['ours']:8.3f} ms  dense {times.get('dense', math.nan) / times['ours']:7.2f}x  "
                f"tltorch, its modes {theirs / times['ours']:7.2f}x",
                flush=True,
            )


def _tltorch(layer: TTLinear, x: torch.Tensor, training: bool) -> dict[str, Run]:
    try:
        import tltorch
    except ImportError:
        return {}
    # (16, 16, 16) at rank r holds 2 * 256 r + 256 r^2 numbers.
    rank = round(math.sqrt(1 + layer.num_parameters / 256) - 1)
    found: dict[str, Run] = {}
    for implementation in ("factorized", "reconstructed"):
        peer = tltorch.FactorizedLinear(
            (16, 16, 16),
            (16, 16, 16),
            bias=False,
            factorization="blocktt",
            rank=[1, rank, rank, 1],
            implementation=implementation,
        )
        found[f"tltorch_{implementation}"] = step(
            lambda peer=peer: peer(x), training, [x, *peer.parameters()]
        )
    return found


def _rate(batches: tuple[int, ...], rounds: int, threads: int) -> None:
    for pattern in ("svd", "opposed3", "balanced2"):
        layer = tt_layer((SIZE, SIZE), pattern, RANK)
        shapes: Shapes = tuple(tuple(core.shape) for core in layer.cores)  # pyright: ignore
        for B in batches:
            plan = choose(
                shapes,
                bucket(B),
                training=False,
                device_type="cpu",
                dtype=torch.float32,
                num_threads=threads,
                source=MEASURED,
            )
            x = torch.randn(B, SIZE)
            runs = {"ours": step(lambda x=x, layer=layer: layer(x), False), "plain": _plain(plan, shapes, B)}
            times = medians(runs, rounds)
            share = times["plain"] / times["ours"]
            print(
                f"{threads} thread(s) {pattern:<10} batch {B:<5} {share:5.0%} of the plain products: {plan}"
            )


def _plain(plan: Plan, shapes: Shapes, B: int) -> Run:
    """One matrix product for each step, of the same sizes, the operands at hand."""
    chunk = min(plan.chunk or B, B)
    operands = [
        (torch.randn(chunk * part.P * part.C, part.b), torch.randn(part.b, part.a))
        for part in Chain.of(plan, shapes).steps
    ]

    def run() -> None:
        for _ in range(B // chunk):
            for z, G in operands:
                torch.mm(z, G)

    return torch.no_grad()(run)


def _memory(batch: int, quick: bool) -> None:
    """Of modes (64, 64), whose chain has large intermediates, and of the two picks."""
    torch.set_num_threads(1)
    names = ["dense", "ours:balanced2", "streamed:balanced2", "ours:svd", "ours:opposed3"]
    names += ["tltorch:balanced2", "tltorch:opposed3"]
    edges = 3 * batch * SIZE * 4
    print(
        f"\nmegabytes that a training step of batch {batch} allocates at its peak, and without y, dy and dx"
    )
    for name in names[:3] if quick else names:
        layer, plan = _contender(name, batch)
        x = torch.randn(batch, SIZE, requires_grad=True)
        peak = _peak(step(lambda layer=layer, x=x: layer(x), True, [x, *layer.parameters()]))
        print(f"{name:<20} {peak / 2**20:6.0f} {(peak - edges) / 2**20:6.0f}  {plan}", flush=True)


def _contender(name: str, batch: int) -> tuple[nn.Module, str]:
    kind, _, pattern = name.partition(":")
    if kind == "dense":
        return nn.Linear(SIZE, SIZE, bias=False), ""
    layer = tt_layer((SIZE, SIZE), pattern, RANK)
    if kind == "tltorch":
        return _like(layer), ""
    shapes: Shapes = tuple(tuple(core.shape) for core in layer.cores)  # pyright: ignore
    place: Any = {"device_type": "cpu", "dtype": torch.float32, "num_threads": 1, "source": FIXED}
    plan = choose(shapes, bucket(batch), training=True, **place)
    plan = Plan("streamed") if kind == "streamed" else plan
    product._chain = lambda *_, **__: (Chain.of(plan, shapes), 0)  # pyright: ignore
    return layer, str(plan)


def _peak(run: Run) -> int:
    """Bytes that torch's allocator holds at most, beyond those it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    found = profiled.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]")
    return max(accumulate(change for _, change in changes))


def _like(layer: TTLinear) -> nn.Module:
    import tltorch

    return tltorch.FactorizedLinear(
        layer.input_dims,
        layer.output_dims,
        bias=False,
        factorization="blocktt",
        rank=[1, *layer.ranks, 1],
        implementation="factorized",
    )


if __name__ == "__main__":
    main()
