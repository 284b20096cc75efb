"""Which plan is used, see `compresskd.tt.execution.policy`.

A fixed one is what the cost model puts first on the reference machine. A measured one is the fastest of the few that
it puts first on this machine, tried once, those that come close to the fastest once more: some tens of milliseconds
for each layer shape, batch bucket, mode, dtype and number of threads. The outcome of a trial is kept on disk beside
the calibration before it is used.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.execution.cached_operands import CONSTANT, Derived, can_keep
from compresskd.tt.execution.chain import Chain
from compresskd.tt.execution.contraction import Plan, Shapes, dense_sizes
from compresskd.tt.execution.cost_model import seconds
from compresskd.tt.execution.eager import least_seconds, undisturbed
from compresskd.tt.execution.machine import Machine, machine, reference_machine
from compresskd.tt.execution.plan_cache import decide
from compresskd.tt.execution.planner import Cost, rank_plans
from compresskd.tt.execution.plans import copied_cores, folded_weight, groups, inference_run, training_run
from compresskd.tt.execution.policy import FIXED

FOLDED_MARGIN = 0.9
TRIED_MARGIN = 0.9
NUM_TRIED = 4
FARTHEST = 2.0
TRIAL_SECONDS = 0.03
LEAST_ROUNDS, MOST_ROUNDS = 2, 6
LEAST_ROWS = 64
LONGEST = 0.2
CLOSE, CONFIRMING, EQUAL = 1.2, 2, 1.05
VERSION = 4


@lru_cache(maxsize=4096)
def choose(
    shapes: Shapes,
    rows: int,
    *,
    training: bool,
    device_type: str,
    dtype: torch.dtype,
    num_threads: int,
    source: str,
    compared: bool = True,
) -> Plan:
    """The plan for cores of these shapes [r, m, n, s] and `rows` rows, 'fixed' or 'measured' as `source` says.

    `compared`: whether each call compares the cores with what was copied of them; not within `constant_weights`, where
    trials differ, and what is measured holds for such calls alone.
    """
    if source == FIXED:
        return _predicted(
            rank_plans(shapes, rows, training=training, machine=reference_machine(num_threads)), training
        )
    on = machine(device_type, dtype, num_threads)
    costs = rank_plans(shapes, rows, training=training, machine=on, itemsize=dtype.itemsize)
    predicted = _predicted(costs, training)
    tried = _shortlist(costs)
    fewer = _trial_rows(tried, shapes, rows, training, on, dtype)
    while len(tried) > 1 and (LEAST_ROUNDS + 1) * _total(tried, shapes, fewer, training, on, dtype) > LONGEST:
        tried.pop()
    if len(tried) < 2 or all(cost.plan != predicted for cost in tried) or device_type == "meta":
        return predicted
    name = (
        f"v{VERSION} {shapes} {rows} {training} {device_type} {dtype} {num_threads} torch{torch.__version__}"
    ) + ("" if compared else CONSTANT)
    outcome = decide(
        "plans",
        name,
        lambda: asdict(_tried(tried, shapes, fewer, training, torch.device(device_type), dtype, on)),
        asdict(predicted),
    )
    return Plan(**{**outcome, "cuts": tuple(outcome["cuts"])})


def _predicted(costs: Sequence[Cost], training: bool) -> Plan:
    """At inference a chain must promise a tenth less than the folded weight: the model is not exact."""
    if training:
        return costs[0].plan
    folded = next(cost for cost in costs if cost.plan.kind == "folded")
    return folded.plan if costs[0].seconds > FOLDED_MARGIN * folded.seconds else costs[0].plan


def _shortlist(costs: Sequence[Cost]) -> list[Cost]:
    """The first few, and the first of every kind and layout, that the model puts near the best."""
    near = [cost for cost in costs if cost.seconds <= FARTHEST * costs[0].seconds]
    kinds: dict[tuple[str, bool], Cost] = {}
    for cost in near:
        kinds.setdefault((cost.plan.kind, cost.plan.columns), cost)
    found = near[:NUM_TRIED] + [cost for cost in kinds.values() if cost not in near[:NUM_TRIED]]
    return sorted(found, key=lambda cost: cost.seconds)


def _trial_rows(
    tried: Sequence[Cost], shapes: Shapes, rows: int, training: bool, on: Machine, dtype: torch.dtype
) -> int:
    while rows > LEAST_ROWS and _total(tried, shapes, rows, training, on, dtype) > TRIAL_SECONDS:
        rows //= 2
    return rows


def _tried(
    tried: Sequence[Cost],
    shapes: Shapes,
    fewer: int,
    training: bool,
    device: torch.device,
    dtype: torch.dtype,
    on: Machine,
) -> Plan:
    """The fastest by measurement on fewer rows, where all would take long; the model tells how time grows."""
    rounds = TRIAL_SECONDS / _total(tried, shapes, fewer, training, on, dtype)
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(rounds)))
    grown = {
        cost.plan: cost.seconds / seconds(cost.plan, shapes, fewer, training, on, dtype.itemsize)
        for cost in tried
    }
    times = dict.fromkeys(grown, math.inf)

    def measure(plans: Sequence[Plan], rounds: int) -> None:
        with undisturbed(grad=training):
            measured = _measure(plans, shapes, fewer, training, device, dtype, rounds)
        for plan, least in zip(plans, measured, strict=True):
            times[plan] = min(times[plan], least * grown[plan])

    measure(list(times), rounds)
    near = [plan for plan, time in times.items() if time <= CLOSE * min(times.values())]
    if len(near) > 1:
        measure(near, CONFIRMING * rounds)
    # of those that are as good as equal the model's first, so that the next trial takes the same
    best = next(plan for plan, time in times.items() if time <= EQUAL * min(times.values()))
    folded = next((plan for plan in times if plan.kind == "folded"), None)
    if not training and folded is not None and times[best] > TRIED_MARGIN * times[folded]:
        return folded
    return best


def _total(
    tried: Sequence[Cost], shapes: Shapes, rows: int, training: bool, on: Machine, dtype: torch.dtype
) -> float:
    return sum(seconds(cost.plan, shapes, rows, training, on, dtype.itemsize) for cost in tried)


def _measure(
    plans: Sequence[Plan],
    shapes: Shapes,
    rows: int,
    training: bool,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
) -> list[float]:
    """Seconds of each: the least of interleaved runs."""
    make = _training_step if training else _inference_step
    runs = [make(Chain.of(plan, shapes), shapes, rows, device, dtype) for plan in plans]
    return least_seconds(runs, device, rounds)


def _training_step(
    chain: Chain, shapes: Shapes, rows: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    num_outputs, num_inputs = dense_sizes(shapes)
    cores = [torch.full(shape, 0.01, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    x = torch.ones(rows, num_inputs, device=device, dtype=dtype, requires_grad=True)
    dy = torch.ones(rows, num_outputs, device=device, dtype=dtype)
    return lambda: torch.autograd.grad(training_run(chain, x, cores, None, num_outputs), [x, *cores], dy)


def _inference_step(
    chain: Chain, shapes: Shapes, rows: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    num_outputs, num_inputs = dense_sizes(shapes)
    cores = [torch.full(shape, 0.01, device=device, dtype=dtype) for shape in shapes]
    x = torch.ones(rows, num_inputs, device=device, dtype=dtype)
    # a call asks first whether what was copied from the cores still holds, which can take longer than the product
    if chain.plan.kind == "folded":
        fold = partial(folded_weight, cores, num_inputs, num_outputs, dtype)
        made = Derived(cores, _kept(cores, range(len(cores))), fold)
        weight = made.content
        return lambda: made.holds(cores) and F.linear(x, weight)
    made = Derived(
        cores, _kept(cores, copied_cores(cores, chain.plan, dtype)), partial(groups, cores, chain, dtype)
    )
    run = inference_run(chain, made.content, rows)
    return lambda: made.holds(cores) and run(x, None)


def _kept(cores: Sequence[Tensor], copied: Collection[int]) -> Collection[int]:
    return copied if can_keep(cores) else ()
