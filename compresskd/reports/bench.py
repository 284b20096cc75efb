"""Latency of factorized layers by plan, against dense and, where it is installed, against tensorly-torch.

All contenders of one case are timed in turn, in one process, and their medians are shown.
"""

from __future__ import annotations

import argparse
import importlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd import artifact, tt
from compresskd.layers import surgery
from compresskd.run import read_record
from compresskd.trust import granted, trusted_packages
from compresskd.tt.decompose.modes import PATTERNS
from compresskd.tt.execution.chain import Chain
from compresskd.tt.execution.contraction import matrices
from compresskd.tt.execution.machine import machine
from compresskd.tt.execution.planner import bucket, rank_plans

Run = Callable[[], object]
_SECONDS_PER_CASE = 0.4


@dataclass(frozen=True)
class Case:
    """One layer at one batch size: the factorized layer, its dense form, an input."""

    name: str
    layer: nn.Module
    dense: Run
    x: Tensor


class BenchError(ValueError):
    """Nothing can be timed as asked."""


def run(arguments: argparse.Namespace) -> int:
    """`compresskd bench DIR` or `compresskd bench --layer MxN --rank R`; the exit code."""
    faults = list(_faults(arguments))
    if faults:
        raise BenchError("\n".join(faults))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    batches = [int(size) for size in arguments.batch.split(",")]
    table = Table(title=f"forward, milliseconds, {torch.get_num_threads()} thread(s)")
    for heading in ("layer", "batch", "plan", "ms", "dense ms", "x dense", "tltorch ms", "x tltorch"):
        table.add_column(heading, justify="left" if heading in ("layer", "plan") else "right")
    if arguments.directory:
        cases = _of_run(arguments.directory, batches, trusted_packages(arguments.trust))
    else:
        cases = _of_layer(arguments, batches)
    for case in cases:
        _add_rows(table, case, arguments.plans)
    console = Console()
    # a plan's name is what one looks for: where no terminal sets the width, lines are as long as they need be
    (console if console.is_terminal else Console(width=160)).print(table)
    return 0


def _faults(arguments: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the arguments, found before anything is timed."""
    for name, least in (("rank", 1), ("cores", 1), ("plans", 0), ("threads", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            yield f"--{name}: got {value}, expected {least} or more"
    if arguments.cores is not None and arguments.cores > max(PATTERNS):
        yield f"--cores: got {arguments.cores}, expected up to {max(PATTERNS)}"
    if not all(size.strip().isdecimal() and int(size) for size in arguments.batch.split(",")):
        yield f"--batch: got {arguments.batch}; write sizes of 1 or more, such as --batch 1,32"
    if arguments.directory is None and not re.fullmatch(
        "[1-9][0-9]*x[1-9][0-9]*", (arguments.layer or "").lower()
    ):
        yield f"--layer: got {arguments.layer}; write a run's folder, or --layer MxN such as --layer 4096x4096"
    if arguments.directory is not None and arguments.layer is not None:
        yield f"--layer: got {arguments.layer} beside {arguments.directory}; write one of them"


def _of_layer(arguments: argparse.Namespace, batches: Sequence[int]) -> Iterator[Case]:
    num_outputs, num_inputs = map(int, arguments.layer.lower().split("x"))
    torch.manual_seed(0)
    layer = tt.factorize(nn.Linear(num_inputs, num_outputs), rank=arguments.rank, num_cores=arguments.cores)
    if isinstance(layer, tt.Skipped):
        raise BenchError(f"--layer {arguments.layer} --rank {arguments.rank}: {layer.reason}")
    for batch in batches:
        yield _case(arguments.layer, layer.eval(), torch.randn(batch, num_inputs))


def _of_run(directory: Path, batches: Sequence[int], said: Sequence[str]) -> Iterator[Case]:
    record = read_record(directory)
    if record.final is None:
        raise BenchError(f"{directory} has no finished stage")
    trust = granted(directory, record, said)
    model = artifact.load(directory / str((record.stage(record.final) or {})["checkpoint"]), trust=trust)
    names = list(surgery.structure(model))
    if not names:
        raise BenchError(f"{directory}: the model of stage {record.final} has no factorized layer")
    shape = record.config["data"]["input_shape"]
    for name, inputs in _inputs(model, names, torch.randn(max(batches), *shape)).items():
        for batch in batches:
            yield _case(name, model.get_submodule(name), inputs[:batch].contiguous())


@torch.inference_mode()
def _inputs(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """What each named layer sees when the model runs on x."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, args: seen.update({name: args[0].clone()})

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def _case(name: str, layer: Any, x: Tensor) -> Case:
    weight, bias = layer.to_dense().detach(), layer.bias
    if weight.dim() == 4:
        options: Any = (layer.stride, layer.padding, layer.dilation)
        return Case(name, layer, lambda: F.conv2d(x, weight, bias, *options), x)
    return Case(name, layer, lambda: F.linear(x, weight, bias), x)


def _add_rows(table: Table, case: Case, num_plans: int) -> None:
    runs: dict[str, Run] = {"picked": lambda: case.layer(case.x), "dense": case.dense}
    picked = ""
    if isinstance(case.layer, tt.TTLinear):
        picked, plans = _plans(case.layer, case.x, num_plans)
        runs |= plans
        runs |= _peer(case.layer, case.x)
    times = _medians(runs)
    peer = times.get("tltorch")
    batch = str(case.x.shape[0])
    for name in [k for k in times if k not in ("dense", "tltorch")]:
        shown = f"picked: {picked}" if name == "picked" and picked else name
        table.add_row(
            case.name,
            batch,
            shown,
            f"{1e3 * times[name]:.3f}",
            f"{1e3 * times['dense']:.3f}",
            f"{times['dense'] / times[name]:.2f}",
            "" if peer is None else f"{1e3 * peer:.3f}",
            "" if peer is None else f"{peer / times[name]:.2f}",
            style="bold" if name == "picked" else None,
        )
    table.add_section()


def _plans(layer: tt.TTLinear, x: Tensor, num_plans: int) -> tuple[str, dict[str, Run]]:
    """The plan that the cost model picks, and those that it ranks first, ready to run."""
    cores = [core.detach() for core in layer.cores]
    shapes: Any = tuple(tuple(core.shape) for core in cores)
    threads, rows = torch.get_num_threads(), bucket(x.shape[0])
    ranked = rank_plans(
        shapes, rows, training=False, machine=machine(x.device.type, x.dtype, threads), itemsize=x.itemsize
    )
    runs: dict[str, Run] = {}
    for cost in [c for c in ranked if c.plan.kind == "chain"][:num_plans]:
        plan = cost.plan
        groups, chain = matrices(cores, plan.cuts, from_right=plan.from_right), Chain.of(plan, shapes)
        runs[str(plan)] = lambda chain=chain, groups=groups: chain.forward(x, groups, layer.bias)
    return layer.plan(x, training=False), runs


def _peer(layer: tt.TTLinear, x: Tensor) -> Mapping[str, Run]:
    """tensorly-torch's factorized layer on modes and ranks like ours, where it is installed."""
    try:
        tltorch: Any = importlib.import_module("tltorch")  # typed alike whether it is installed or not
    except ImportError:
        return {}
    peer = tltorch.FactorizedLinear(
        layer.input_dims,
        layer.output_dims,
        bias=layer.bias is not None,
        factorization="blocktt",
        rank=[1, *layer.ranks, 1],
        implementation="factorized",
    )
    return {"tltorch": lambda: peer(x)}


@torch.inference_mode()
def _medians(runs: Mapping[str, Run]) -> dict[str, float]:
    """Median seconds of each contender, all timed in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    start = time.perf_counter()
    while time.perf_counter() - start < _SECONDS_PER_CASE or len(times["dense"]) < 5:
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}
