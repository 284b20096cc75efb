"""A 4096 x 4096 layer at rank 16 in the modes that the search picks: against dense, against tensorly-torch, memory.

    python benchmarks/tt_large.py [--quick] [--threads 1,2] [--parts speed,parameters,memory,rate]

speed: forward and training against dense. parameters: against tensorly-torch in its own default modes (16, 16, 16) at
the same number of parameters, the better of its implementations. memory: what one training step adds to the resident
memory at its peak, each in a process of its own. rate: the time of plain products of the same shapes over that of the
layer.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from tt_cases import Run, medians, step, tt_layer, use_opt_einsum

from compresskd.tt import TTLinear, product
from compresskd.tt.chain import Chain
from compresskd.tt.choice import choose
from compresskd.tt.contraction import Plan
from compresskd.tt.planner import Shapes, bucket

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
    parser.add_argument("--step", nargs=2, metavar=("WHICH", "BATCH"), help="(one training step, for memory)")
    options = parser.parse_args()
    if options.step:
        _one_step(options.step[0], int(options.step[1]))
        return
    use_opt_einsum()
    batches, rounds = ((1, 32, 256), 3) if options.quick else ((1, 32, 256, 2048), 7)
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        if "speed" in options.parts or "parameters" in options.parts:
            for pattern, name in PATTERNS.items():
                _speed(pattern, name, batches, rounds, threads, options.parts)
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
            runs: dict[str, Run] = {"ours": step(lambda x=x: layer(x), training)}
            if "speed" in parts:
                runs["dense"] = step(lambda x=x: dense(x), training)
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
        found[f"tltorch_{implementation}"] = step(lambda peer=peer: peer(x), training)
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
            )
            x = torch.randn(B, SIZE)
            runs = {"ours": step(lambda x=x, layer=layer: layer(x), False), "plain": _plain(plan, shapes, B)}
            times = medians(runs, rounds)
            share = times["plain"] / times["ours"]
            print(
                f"{threads} thread(s) {pattern:<10} batch {B:<5} {share:5.0%} of the plain products: {plan}"
            )


def _plain(plan: Plan, shapes: Shapes, B: int) -> Run:
    """One matrix product for each step, of the same sizes, operands and result at hand."""
    chunk = min(plan.chunk or B, B)
    operands = []
    for part in Chain.of(plan, shapes).steps:
        rows = chunk * part.P * part.C
        operands.append((torch.randn(rows, part.b), torch.randn(part.b, part.a), torch.empty(rows, part.a)))

    def run() -> None:
        for _ in range(B // chunk):
            for z, G, out in operands:
                torch.mm(z, G, out=out)

    return torch.no_grad()(run)


def _memory(batch: int, quick: bool) -> None:
    """Of modes (64, 64), whose chain has large intermediates, and of the two picks."""
    names = ["dense", "ours:balanced2", "streamed:balanced2", "ours:svd", "ours:opposed3"]
    names += ["tltorch:balanced2", "tltorch:opposed3"]
    print(f"\nmegabytes that a training step adds at its peak, batch {batch}")
    for name in names[:3] if quick else names:
        command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--step", name, str(batch)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{name:<20} {found.stdout.strip()}", flush=True)


def _one_step(name: str, batch: int) -> None:
    """Prints the rise of the peak resident memory over one step; what a first call prepares is made before."""
    kind, _, pattern = name.partition(":")
    torch.set_num_threads(1)
    use_opt_einsum()
    layer: nn.Module = nn.Linear(SIZE, SIZE, bias=False)
    if kind != "dense":
        layer = tt_layer((SIZE, SIZE), pattern, RANK)
        assert isinstance(layer, TTLinear)
        shapes: Shapes = tuple(tuple(core.shape) for core in layer.cores)  # pyright: ignore
        plan = choose(
            shapes, bucket(batch), training=True, device_type="cpu", dtype=torch.float32, num_threads=1
        )
        if kind == "streamed":
            plan = Plan("streamed")
        product._chain = lambda *_, **__: (Chain.of(plan, shapes), 0)  # pyright: ignore
        kind = str(plan) if kind != "tltorch" else kind
        if kind == "tltorch":
            layer = _like(layer)
    x = torch.randn(batch, SIZE, requires_grad=True)
    small = torch.randn(64, 64, requires_grad=True)
    (small @ small).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    y = layer(x)
    y.backward(torch.ones_like(y))
    print(f"{(_status('VmHWM') - before) / 1024:7.0f}  {kind}")


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


def _status(key: str) -> int:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
