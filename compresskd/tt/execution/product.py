"""The product x W^T with W in tensor-train format, by the plan that suits the batch and the mode.

At inference the operands of a plan (merged groups, or the folded dense weight) are kept in a `Prepared`; in training
they are made from the cores anew, so that gradients reach them. Modes may be larger than the layer: x is padded
with zeros to the product of the input modes, y cut from that of the output modes.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from compresskd.tt.execution.cached_operands import Derived, Prepared, can_keep, promised
from compresskd.tt.execution.chain import Chain
from compresskd.tt.execution.choice import choose
from compresskd.tt.execution.contraction import Shapes, matrices, steps
from compresskd.tt.execution.memory import keep_freed_memory
from compresskd.tt.execution.planner import bucket
from compresskd.tt.execution.plans import (
    copied_cores,
    cut,
    folded_weight,
    groups,
    inference_run,
    training_run,
)
from compresskd.tt.execution.policy import said, source_of

_is_compiling, _tracing_state = torch.compiler.is_compiling, torch._C._get_tracing_state
_transforms = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]


def infer(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int, prepared: Prepared
) -> Tensor:
    """x [B, N] to [B, M] without a graph; cores and bias are cast to the dtype of x."""
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    if not can_keep(cores):
        return train(x, [core.to(x.dtype) for core in cores], bias, num_outputs)
    name = (x.shape, x.dtype, torch.get_num_threads(), said(), promised() is None)
    return prepared.run(name, cores, lambda: _prepare(x, cores, num_outputs, prepared))(x, bias)


def _prepare(x: Tensor, cores: Sequence[Tensor], num_outputs: int, prepared: Prepared) -> Derived:
    """What computes y from an x of this shape, and a bias."""
    dtype = x.dtype
    chain, missing = plan_of(x, cores, training=False)
    if chain.plan.kind == "folded":
        # One folded weight serves all batch sizes.
        fold = partial(folded_weight, cores, x.shape[1], num_outputs, dtype)
        made = prepared.operands(("weight", dtype), cores, range(len(cores)), fold)
        weight = made.content
        return made.carrying(lambda x, bias: F.linear(x, weight, bias))
    name = ("groups", chain.plan.cuts, chain.plan.from_right, dtype)
    copied = copied_cores(cores, chain.plan, dtype)
    made = prepared.operands(name, cores, copied, partial(groups, cores, chain, dtype))
    run = inference_run(chain, made.content, x.shape[0])
    if missing or chain.num_outputs != num_outputs:
        return made.carrying(lambda x, bias: cut(run(F.pad(x, (0, missing)), None), bias, num_outputs))
    return made.carrying(run)


def train(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int) -> Tensor:
    """x [B, N] to [B, M] with a graph."""
    chain, missing = plan_of(x, cores, training=True)
    return training_run(chain, x, cores, bias, num_outputs, missing)


def plan_of(x: Tensor, cores: Sequence[Tensor], *, training: bool) -> tuple[Chain, int]:
    """The plan, as policy has it now, for x [B, N] through these cores; and how many inputs padding adds."""
    place = (bucket(x.shape[0]), x.shape[1], x.device.type, x.dtype, torch.get_num_threads())
    source, compared = source_of(training=training), training or promised() is None
    shapes = tuple([core.shape for core in cores])
    return _chain(shapes, *place, training=training, source=source, compared=compared)


@lru_cache(maxsize=4096)
def _chain(
    shapes: Shapes,
    num_rows: int,
    num_inputs: int,
    device_type: str,
    dtype: torch.dtype,
    num_threads: int,
    *,
    training: bool,
    source: str,
    compared: bool,
) -> tuple[Chain, int]:
    keep_freed_memory()
    plain: Shapes = tuple([tuple(shape) for shape in shapes])  # pyright: ignore[reportAssignmentType]
    plan = choose(
        plain,
        num_rows,
        training=training,
        device_type=device_type,
        dtype=dtype,
        num_threads=num_threads,
        source=source,
        compared=compared,
    )
    return Chain.of(plan, plain), math.prod([shape[2] for shape in plain]) - num_inputs


def is_watched() -> bool:
    """Whether somebody follows what is computed: a compiler, a tracer, `torch.func`, forward-mode differentiation.

    To them nothing that was kept, and no operation with a gradient of its own, may be shown: `traced` is for them.
    """
    return (
        _is_compiling()
        or _tracing_state() is not None
        or _transforms() is not None
        or forward_ad._current_level >= 0
    )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes a product with x in; None where it does nothing."""
    device_type = x.device.type
    # asked first whether any: the question for one device has no answer on the meta device
    if not torch._C._is_any_autocast_enabled() or device_type == "meta" or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def traced(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int) -> Tensor:
    """x [..., N] to [..., M] by one plan for all batch sizes, without a look at any value: for compilers."""
    shapes, cuts = [core.shape for core in cores], tuple(range(1, len(cores)))
    costs = {
        from_right: sum([s.a * s.b * s.P * s.C for s in steps(shapes, cuts, from_right=from_right)])
        for from_right in (True, False)
    }
    from_right = costs[True] <= costs[False]
    path = steps(shapes, cuts, from_right=from_right)
    missing = path[0].b * path[0].P * path[0].C - x.shape[-1]
    lead, z = x.shape[:-1], F.pad(x, (0, missing)) if missing else x
    for G, step in zip(matrices(cores, cuts, from_right=from_right), path, strict=True):
        # no z[..., 0]: exported, it would become a gather, which copies number by number
        z = (
            F.linear(z.reshape(-1, step.b), G)
            if step.C == 1
            else torch.matmul(G, z.reshape(-1, step.b, step.C))
        )
    return cut(z.reshape(*lead, path[-1].a * path[-1].P * path[-1].C), bias, num_outputs)
