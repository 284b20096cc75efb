"""The product x W^T with W in tensor-train format, by the plan that suits the batch and the mode.

At inference the operands of a plan (merged groups, or the folded dense weight) are kept in a `Prepared`; in training
they are made from the cores anew, so that gradients reach them. Modes may be larger than the layer: x is padded
with zeros to the product of the input modes, y cut from that of the output modes.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.chain import Chain
from compresskd.tt.choice import choose
from compresskd.tt.contraction import matrices, steps
from compresskd.tt.execution import cut, folded_weight, groups, inference_run, training_run
from compresskd.tt.planner import Shapes, bucket
from compresskd.tt.prepared import Prepared


def infer(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int, prepared: Prepared
) -> Tensor:
    """x [B, N] to [B, M] without a graph; cores and bias are cast to the dtype of x."""
    key = prepared.refresh(cores if bias is None else [*cores, bias])
    name = (key, x.shape, x.dtype, torch.get_num_threads())
    run = prepared.runs.get(name)
    if run is None:
        with torch.inference_mode(False), torch.no_grad():
            run = prepared.runs[name] = _prepare(x, cores, bias, num_outputs, prepared)
    return run(x)


def _prepare(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int, prepared: Prepared
) -> Callable[[Tensor], Tensor]:
    """What computes y from an x of this shape."""
    dtype = x.dtype
    chain, missing = _chain(tuple([core.shape for core in cores]), *_place(x), training=False)
    if bias is not None:
        bias = bias.detach().to(dtype)
    if chain.plan.kind == "folded":
        # One folded weight serves all batch sizes.
        weight = prepared.peek(("weight", dtype))
        if weight is None:
            weight = prepared.put(("weight", dtype), folded_weight, cores, x.shape[1], num_outputs, dtype)
        return partial(F.linear, weight=weight, bias=bias)
    name = ("groups", chain.plan.cuts, chain.plan.from_right, dtype)
    Gs = prepared.peek(name)
    if Gs is None:
        Gs = prepared.put(name, groups, cores, chain, dtype)
    if bias is not None:
        bias = F.pad(bias, (0, chain.num_outputs - num_outputs))
    run = inference_run(chain, Gs, x.shape[0], bias)
    if missing or chain.num_outputs != num_outputs:
        return lambda x: run(F.pad(x, (0, missing)))[:, :num_outputs].contiguous()
    return run


def train(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int) -> Tensor:
    """x [B, N] to [B, M] with a graph."""
    chain, missing = _chain(tuple([core.shape for core in cores]), *_place(x), training=True)
    return training_run(chain, x, cores, bias, num_outputs, missing)


def _place(x: Tensor) -> tuple[int, int, str, torch.dtype, int]:
    return bucket(x.shape[0]), x.shape[1], x.device.type, x.dtype, torch.get_num_threads()


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
) -> tuple[Chain, int]:
    """The plan and the number of inputs that padding adds."""
    plain: Shapes = tuple([tuple(shape) for shape in shapes])  # pyright: ignore[reportAssignmentType]
    plan = choose(
        plain, num_rows, training=training, device_type=device_type, dtype=dtype, num_threads=num_threads
    )
    return Chain.of(plan, plain), math.prod([shape[2] for shape in plain]) - num_inputs


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
