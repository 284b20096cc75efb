"""The product x W^T with W in tensor-train format, by the plan that suits the batch and the mode.

At inference the operands of a plan (merged groups, or the folded dense weight) are kept in a `Prepared`; in training
they are made from the cores anew, so that gradients reach them. Modes may be larger than the layer: x is padded
with zeros to the product of the input modes, y cut from that of the output modes.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskd.tt.contraction import Plan, chain_rows, compile_rows, matrices, run_chain, steps
from compresskd.tt.cores import merge, to_matrix
from compresskd.tt.planner import Shapes, bucket, choose
from compresskd.tt.prepared import Prepared
from compresskd.tt.recompute import RecomputedChain
from compresskd.tt.streamed import StreamedLinear, split_bond


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
    shapes, dtype = _shapes(cores), x.dtype
    plan = _plan(x, shapes, training=False)
    if bias is not None:
        bias = bias.detach().to(dtype)
    if plan.kind == "folded":
        # One folded weight serves all batch sizes.
        weight = prepared.peek(("weight", dtype))
        if weight is None:
            weight = prepared.put(("weight", dtype), _folded, cores, x.shape[1], num_outputs, dtype)
        linear = F.linear
        return lambda x: linear(x, weight, bias)
    path = steps(shapes, plan.cuts, from_right=plan.from_right)
    name = ("groups", plan.cuts, plan.from_right, dtype)
    Gs = prepared.peek(name)
    if Gs is None:
        Gs = prepared.put(name, _groups, cores, plan, dtype)
    missing, width = path[0].b * path[0].P * path[0].C - x.shape[1], path[-1].a * path[-1].P * path[-1].C
    if bias is not None and width != num_outputs:
        bias = F.pad(bias, (0, width - num_outputs))
    whole = not plan.columns and not 0 < plan.chunk < x.shape[0]
    if whole:
        run = compile_rows(Gs, path, x.shape[0], bias)
    else:
        run = partial(run_chain, Gs=Gs, steps=path, plan=plan, bias=bias)
    if missing or width != num_outputs:
        return lambda x: run(F.pad(x, (0, missing)))[:, :num_outputs].contiguous()
    return run


def _groups(cores: Sequence[Tensor], plan: Plan, dtype: torch.dtype) -> list[Tensor]:
    detached = [core.detach() for core in cores]
    return [G.to(dtype).contiguous() for G in matrices(detached, plan.cuts, from_right=plan.from_right)]


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
