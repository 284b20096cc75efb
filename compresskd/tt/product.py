"""The product x W^T with W in tensor-train format, by the plan that suits the batch and the mode.

At inference the operands of a plan (merged groups, or the folded dense weight) are kept in a `Prepared`; in training
they are made from the cores anew, so that gradients reach them. Modes may be larger than the layer: x is padded
with zeros to the product of the input modes, y cut from that of the output modes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.contraction import Plan, chain_rows, matrices, run_chain, steps
from compresskd.tt.cores import merge, to_matrix
from compresskd.tt.planner import Shapes, bucket, choose
from compresskd.tt.prepared import Prepared
from compresskd.tt.recompute import RecomputedChain
from compresskd.tt.streamed import StreamedLinear, split_bond


def infer(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int, prepared: Prepared
) -> Tensor:
    """x [B, N] to [B, M] without a graph; cores and bias are cast to the dtype of x."""
    sources = cores if bias is None else (*cores, bias)
    name = ((x.shape[0] - 1).bit_length(), x.dtype, torch.get_num_threads())
    held = prepared.get(sources, name)
    if held is None:
        held = prepared.put(name, _prepare, x, cores, bias, num_outputs, prepared)
    plan, operands, path, cast_bias, missing = held
    if path is None:
        return F.linear(x, operands, cast_bias)
    if missing:
        x = F.pad(x, (0, missing))
    y = run_chain(x, operands, path, plan, cast_bias)
    return y if y.shape[1] == num_outputs else y[:, :num_outputs].contiguous()


def _prepare(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int, prepared: Prepared
) -> tuple[Any, ...]:
    """The plan, what it runs on, its steps (None: one product), the bias and the padding of x."""
    shapes, dtype = _shapes(cores), x.dtype
    plan = _plan(x, shapes, training=False)
    cast_bias = None if bias is None else bias.detach().to(dtype)
    if plan.kind == "folded":
        # One folded weight serves all batch sizes.
        weight = prepared.peek(("weight", dtype))
        if weight is None:
            weight = prepared.put(("weight", dtype), _folded, cores, x.shape[1], num_outputs, dtype)
        return plan, weight, None, cast_bias, 0
    path = steps(shapes, plan.cuts, from_right=plan.from_right)
    detached = [core.detach() for core in cores]
    Gs = [G.to(dtype).contiguous() for G in matrices(detached, plan.cuts, from_right=plan.from_right)]
    num_rows = path[-1].a * path[-1].P * path[-1].C
    if cast_bias is not None and num_rows != num_outputs:
        cast_bias = F.pad(cast_bias, (0, num_rows - num_outputs))
    return plan, Gs, path, cast_bias, path[0].b * path[0].P * path[0].C - x.shape[1]


def _folded(cores: Sequence[Tensor], num_inputs: int, num_outputs: int, dtype: torch.dtype) -> Tensor:
    weight = to_matrix([core.detach() for core in cores])[:num_outputs, :num_inputs]
    return weight.to(dtype).clone(memory_format=torch.contiguous_format)


def train(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int) -> Tensor:
    """x [B, N] to [B, M] with a graph."""
    shapes = _shapes(cores)
    plan = _plan(x, shapes, training=True)
    if plan.kind == "folded":
        return F.linear(x, to_matrix(cores)[:num_outputs, : x.shape[1]], bias)
    path = steps(shapes, plan.cuts, from_right=plan.from_right)
    missing = path[0].b * path[0].P * path[0].C - x.shape[1]
    if missing:
        x = F.pad(x, (0, missing))
    fits = path[-1].a * path[-1].P * path[-1].C == num_outputs
    if plan.kind == "chain":
        y = chain_rows(
            x, matrices(cores, plan.cuts, from_right=plan.from_right), path, bias if fits else None
        )
        return y if fits else _cut(y, bias, num_outputs)
    if plan.kind == "streamed":
        bond = split_bond(shapes)
        left, right = merge(cores[:bond])[0], merge(cores[bond:])[..., 0].transpose(0, 1)
        y = StreamedLinear.apply(x, left.contiguous(), right.contiguous())
    else:
        y = RecomputedChain.apply(x, path, plan, *matrices(cores, plan.cuts, from_right=plan.from_right))
    return _cut(y, bias, num_outputs)  # pyright: ignore[reportArgumentType]


def traced(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, num_outputs: int) -> Tensor:
    """x [..., N] to [..., M] by one plan for all batch sizes, without a look at any value: for compilers."""
    shapes, cuts = _shapes(cores), tuple(range(1, len(cores)))
    costs = {
        from_right: sum([s.a * s.b * s.P * s.C for s in steps(shapes, cuts, from_right=from_right)])
        for from_right in (True, False)
    }
    from_right = costs[True] <= costs[False]
    path = steps(shapes, cuts, from_right=from_right)
    missing = path[0].b * path[0].P * path[0].C - x.shape[-1]
    lead, z = x.shape[:-1], F.pad(x, (0, missing)) if missing else x
    for G, step in zip(matrices(cores, cuts, from_right=from_right), path, strict=True):
        z = z.reshape(-1, step.b, step.C)
        z = F.linear(z[..., 0], G) if step.C == 1 else torch.matmul(G, z)
    return _cut(z.reshape(*lead, path[-1].a * path[-1].P * path[-1].C), bias, num_outputs)


def _cut(y: Tensor, bias: Tensor | None, num_outputs: int) -> Tensor:
    y = y if y.shape[-1] == num_outputs else y[..., :num_outputs]
    return y if bias is None else y + bias


def _plan(x: Tensor, shapes: Shapes, *, training: bool) -> Plan:
    return choose(
        shapes,
        bucket(x.shape[0]),
        training=training,
        device_type=x.device.type,
        dtype=x.dtype,
        num_threads=torch.get_num_threads(),
    )


def _shapes(cores: Sequence[Tensor]) -> Shapes:
    return tuple([tuple(core.shape) for core in cores])  # pyright: ignore[reportReturnType]
