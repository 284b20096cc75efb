"""Tensor-train linear layers against dense, tensorly-torch, torchTT and t3nsor's way, side by side in one process.

    python benchmarks/tt_linear.py [--quick] [--threads 1,2] [--shapes 784x256,4096x4096] [--training] [--regret]
    python benchmarks/tt_linear.py --set hand [--training]    # modes as people choose them, at most half of dense
    python benchmarks/tt_linear.py --set picks [--training] --alone    # what factorize picks for 20 real shapes
    python benchmarks/tt_linear.py --set hand --constant     # where the caller says that no weight changes
    python benchmarks/tt_linear.py --save times.jsonl --shapes 784x256     # a table in pieces ...
    python benchmarks/tt_linear.py --merge times.jsonl                     # ... and its summary

Peers run on the same cores where they are installed. Every figure is a ratio of the medians of interleaved runs:
above 1, compresskd is faster. The plan is the one that the library picks by itself. With one thread times are those
of the thread's own work, so that what else runs on the machine is not counted. "bound" is the time that the least
multiply-adds of all contractions take at the rate of the dense layer in the same case.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean, geometric_mean, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from tt_cases import (
    PATTERNS,
    REAL_SHAPES,
    Run,
    least_work,
    medians,
    peers,
    picked_layer,
    step,
    tt_layer,
    use_opt_einsum,
)

from compresskd.tt import TTLinear, constant_weights
from compresskd.tt.execution.chain import Chain
from compresskd.tt.execution.choice import choose
from compresskd.tt.execution.machine import machine, reference_machine
from compresskd.tt.execution.planner import bucket, rank_plans
from compresskd.tt.execution.plans import folded_weight, groups, inference_run, training_run
from compresskd.tt.execution.policy import SOURCES

HINDSIGHT = 10
LARGEST = 1 << 24
DENSE, BOUND, MICROSECONDS = "dense", "bound", "microseconds"
PICK = "pick"  # followed by how many times smaller the layer is to be
Case = tuple[tuple[int, int], str, int, int]


def bench(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Ratios of one case."""
    (num_inputs, num_outputs), *_, B = case
    torch.manual_seed(0)
    layer, dense = case_layer(case), nn.Linear(num_inputs, num_outputs, bias=False)
    x = torch.randn(B, num_inputs, requires_grad=options.training)
    runs = {
        "ours": step(lambda: layer(x), options.training, [x, *layer.parameters()]),
        DENSE: step(lambda: dense(x), options.training, [x, *dense.parameters()]),
        **({} if options.alone else _peers(layer, x, options)),
    }
    with constant_weights() if options.constant else nullcontext():
        times = medians(runs, options.rounds)
    best = min((times[k] for k in times if k.startswith("tltorch")), default=math.nan)
    others = min((times[k] for k in ("t3nsor", "torchtt") if k in times), default=math.nan)
    bound = times[DENSE] * least_work(layer, B, options.training)
    result = {DENSE: times[DENSE], "tltorch": best, "left_to_right": others, BOUND: bound}
    ratios = {name: value / times["ours"] for name, value in result.items() if not math.isnan(value)}
    ratios[MICROSECONDS] = 1e6 * times["ours"]
    if options.regret:
        ratios |= regret(layer, x, options)
    return ratios


def case_layer(case: Case) -> TTLinear:
    """A fresh layer of these modes and rank, or what `factorize` picks."""
    shape, pattern, rank, _ = case
    if not pattern.startswith(PICK):
        return tt_layer(shape, pattern, rank)
    layer = picked_layer(shape, 1 / int(pattern.removeprefix(PICK)))
    assert isinstance(layer, TTLinear)
    return layer


def _peers(layer: TTLinear, x: Tensor, options: argparse.Namespace) -> dict[str, Run]:
    """Those that fit: contraction from the left takes gigabytes where the left output modes are long."""
    found = peers(layer, x, options.training)
    largest = max(
        x.shape[0]
        * math.prod(layer.output_dims[:k])
        * math.prod(layer.input_dims[k:])
        * (layer.ranks[k - 1] if k < len(layer.cores) else 1)
        for k in range(1, len(layer.cores) + 1)
    )
    slow = x.shape[0] > options.left_to_right or options.training or largest > LARGEST
    return {name: run for name, run in found.items() if not (slow and name in ("t3nsor", "torchtt"))}


def regret(layer: TTLinear, x: Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the plan picked, fixed and measured, over those of the best in hindsight of all that may be good."""
    shapes: Any = tuple(tuple(core.shape) for core in layer.cores)
    threads, rows, training = torch.get_num_threads(), bucket(x.shape[0]), options.training
    place: Any = {"device_type": "cpu", "dtype": torch.float32, "num_threads": threads}
    picked = {source: choose(shapes, rows, training=training, source=source, **place) for source in SOURCES}
    plans = list(picked.values())
    for on in (machine("cpu", torch.float32, threads), reference_machine(threads)):
        ranked = rank_plans(shapes, rows, training=training, machine=on)
        firsts = {(cost.plan.kind, cost.plan.columns): cost.plan for cost in reversed(ranked)}
        plans += [cost.plan for cost in ranked[:HINDSIGHT]] + list(firsts.values())
    runs = {str(plan): _plan_run(layer, Chain.of(plan, shapes), x, training) for plan in dict.fromkeys(plans)}
    times = medians(runs, options.rounds)
    best = min(times.values())
    return {f"regret {source}": times[str(plan)] / best for source, plan in picked.items()}


def _plan_run(layer: TTLinear, chain: Chain, x: Tensor, training: bool) -> Run:
    cores = list(layer.cores)
    if training:
        return step(lambda: training_run(chain, x, cores, None, layer.out_features), True)
    if chain.plan.kind == "folded":
        weight = folded_weight(cores, layer.in_features, layer.out_features, x.dtype)
        return torch.no_grad()(lambda: nn.functional.linear(x, weight))
    run = inference_run(chain, groups(cores, chain, x.dtype), x.shape[0])
    return torch.no_grad()(lambda: run(x, None))


def main() -> None:
    """Print one line for each case and the geometric means."""
    options = _options()
    if options.merge:
        lines = [json.loads(line) for path in options.merge for line in Path(path).read_text().splitlines()]
        last = {(line["training"], line["threads"], str(line["case"])): line for line in lines}
        for training, threads in sorted({(line["training"], line["threads"]) for line in last.values()}):
            chosen = [
                line for line in last.values() if (line["training"], line["threads"]) == (training, threads)
            ]
            _title(training, threads)
            _summaries([(tuple(line["case"]), line["ratios"]) for line in chosen], training)
        return
    use_opt_einsum()
    cases = _cases(options)
    started = time.perf_counter()
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        _table(cases, threads, options, started)


def _cases(options: argparse.Namespace) -> list[Case]:
    cases: list[Case] = [
        ((int(a), int(b)), pattern, int(rank), int(B))
        for a, b in (shape.split("x") for shape in options.shapes.split(","))
        for pattern in options.modes.split(",")
        for rank in options.ranks.split(",")
        for B in options.batch.split(",")
    ]
    if options.set != "hand":
        return cases
    return [case for case in cases if 2 * case_layer(case).num_parameters <= math.prod(case[0])]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few cases, few rounds")
    parser.add_argument("--training", action="store_true", help="forward with backward")
    parser.add_argument("--regret", action="store_true", help="the pick against the best plan in hindsight")
    parser.add_argument("--threads", default="1")
    parser.add_argument(
        "--set", choices=("all", "hand", "picks"), default="all", help="cases instead of --modes"
    )
    parser.add_argument("--constant", action="store_true", help="within compresskd.tt.constant_weights")
    parser.add_argument("--alone", action="store_true", help="against dense and the bound only")
    parser.add_argument("--shapes", default="784x256,1024x1024,768x3072,4096x4096")
    parser.add_argument("--modes", default=",".join(PATTERNS))
    parser.add_argument("--ranks", default="4,16,64")
    parser.add_argument("--batch", default="1,32,256,2048")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--left-to-right", type=int, default=256, help="largest batch for t3nsor and torchTT")
    parser.add_argument("--save", help="append every case to this file, and leave out those that are in it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no case after so many")
    parser.add_argument("--merge", nargs="+", help="summarize such files")
    options = parser.parse_args()
    if options.set == "hand":
        options.modes, options.batch = "hand2,hand3", "32,256" if options.training else "1,32,256"
    if options.set == "picks":
        options.shapes = ",".join(f"{a}x{b}" for a, b in REAL_SHAPES)
        options.modes, options.ranks, options.batch = f"{PICK}2,{PICK}4,{PICK}10", "0", "32,256"
    if options.quick:
        options.modes, options.ranks, options.batch = "svd,opposed3,balanced2", "4,16", "1,32,256"
        options.rounds = 5
    return options


def _table(cases: Sequence[Case], threads: int, options: argparse.Namespace, started: float) -> None:
    _title(options.training, threads)
    file = Path(options.save) if options.save else None
    known = [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []
    done = {(line["training"], line["threads"], str(line["case"])) for line in known}
    rows: list[tuple[Case, dict[str, float]]] = []
    for case in cases:
        plain = json.loads(json.dumps(case))
        if (options.training, threads, str(plain)) in done:
            continue
        if time.perf_counter() - started > options.seconds:
            print("out of time")
            return
        ratios = bench(case, options)
        rows.append((case, ratios))
        cells = "  ".join(f"{name} {value:8.2f}" for name, value in ratios.items())
        print(f"{_named(case)} {cells}", flush=True)
        if file:
            line = {"training": options.training, "threads": threads, "case": case, "ratios": ratios}
            with file.open("a") as out:
                out.write(json.dumps(line) + "\n")
    _summaries(rows, options.training)


def _title(training: bool, threads: int) -> None:
    mode = "forward with backward" if training else "forward"
    print(f"\n{mode}, {threads} thread(s), ratios of medians (above 1: compresskd is faster)")


def _named(case: Case) -> str:
    (a, b), pattern, rank, B = case
    return f"{a}x{b:<5} {pattern:<10} rank {rank:<3} batch {B:<5}"


def _summaries(rows: Sequence[tuple[Case, dict[str, float]]], training: bool) -> None:
    names = [name for name in (rows[0][1] if rows else ()) if name != MICROSECONDS]
    for pattern in sorted({case[1] for case, _ in rows if case[1].startswith(PICK)}):
        print(f"{pattern}:")
        _summary(DENSE, [(case[3], ratios[DENSE]) for case, ratios in rows if case[1] == pattern])
    for name in names:
        _summary(name, [(case[3], ratios[name]) for case, ratios in rows if name in ratios])
    for case, ratios in rows:
        for reason in _misses(ratios, training):
            print(f"missed: {_named(case)} {reason}")


def _misses(ratios: dict[str, float], training: bool) -> list[str]:
    """The targets that a case misses."""
    if MICROSECONDS not in ratios:
        return []
    ours, dense, bound = ratios[MICROSECONDS], ratios[DENSE], ratios[BOUND]
    found = [f"{ratios['tltorch']:.2f} of tltorch's speed"] if ratios.get("tltorch", 1.0) < 1.0 else []
    if not training and ours > 1.05 * dense * ours + 3:
        found.append(f"{1 / dense:.2f} of dense, {ours - dense * ours:.1f} microseconds more")
    if training and bound < dense and dense < 1 / 1.15:
        found.append(f"{1 / dense:.2f} of dense where the bound is {bound / dense:.2f}")
    if training and bound < 1 / 1.3:
        found.append(f"{1 / bound:.2f} of the bound, which is {bound / dense:.2f} of dense")
    return found


def _summary(name: str, values: list[tuple[int, float]]) -> None:
    if not values:
        return
    every = [value for _, value in values]
    if name.startswith("regret"):
        tenth = quantiles(every, n=10)[-1] if len(every) > 1 else every[0]
        print(f"{name}: mean {fmean(every):.2f}, 90th percentile {tenth:.2f}")
        return
    batches = sorted({B for B, _ in values})
    by_batch = ", ".join(
        f"batch {B}: {geometric_mean([v for b, v in values if b == B]):.2f}" for B in batches
    )
    few = f"{sum(value < 0.9 for value in every)} of {len(every)} under 0.9"
    print(
        f"against {name}: geometric mean {geometric_mean(every):.2f}, least {min(every):.2f}, {few} ({by_batch})"
    )


if __name__ == "__main__":
    main()
