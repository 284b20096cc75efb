"""Training of a model whose parameters are spread over the processes, by torch's fully_shard (FSDP2)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.distributed.group import Group, ProcessLost


@contextmanager
def sharded(model: nn.Module, group: Group) -> Iterator[nn.Module]:
    """What is to be trained in the place of `model`, of whose parameters each process has its part alone.

    Between two uses of a block, such as a layer of a transformer, its other parts are nowhere in a process. Meanwhile
    `model` has no values; it has the trained ones afterwards, where the block within ends well. A gradient is the sum
    of those of all processes.

    Args:
        model: of contiguous parameters, the same in all processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    twin = _twin(model, {})
    mesh = init_device_mesh(next(model.parameters()).device.type, (group.world,))
    for block in _blocks(twin):
        fully_shard(block, mesh=mesh)
    fully_shard(twin, mesh=mesh)
    for module in twin.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # the only one that gloo has
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    yield twin
    for parameter, part in zip(model.parameters(), twin.parameters(), strict=True):
        parameter.data = whole(part.detach(), group)


def is_sharded(model: nn.Module) -> bool:
    """Whether a process has a part of the parameters alone."""
    return any(map(_is_part, model.parameters()))


def own_alone(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those of which each process has all."""
    return [p for p in parameters if not _is_part(p)]


def whole(values: Any, group: Group) -> Any:
    """Values of any structure with whole tensors in the place of parts; called by all processes together.

    Raises:
        ProcessLost: another process has ended.
    """
    from torch.distributed.tensor import DTensor
    from torch.utils._pytree import tree_map_only

    try:
        return tree_map_only(DTensor, DTensor.full_tensor, values)
    except RuntimeError as error:
        raise ProcessLost(group.whom(error)) from error


def parts_of(values: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Whole tensors as what this process has of them, where the one of that name in `like` is a part."""
    return {name: _part(value, like.get(name)) for name, value in values.items()}


def optimizer_parts_of(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer of whole parameters, for one that may have parts of them, in its own kernels."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: _part(value, parameters[number]) for name, value in own.items()}
        for number, own in saved["state"].items()
    }
    pairs = zip(saved["param_groups"], optimizer.param_groups, strict=True)
    groups = [{**then, **{k: v for k, v in now.items() if k == "fused"}} for then, now in pairs]
    return {**saved, "state": state, "param_groups": groups}


def _part(value: Any, like: Any) -> Any:
    """The part of a tensor that this process has of another one of its shape."""
    if not (_is_part(like) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    there = value.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def _is_part(value: Any) -> bool:
    return hasattr(value, "device_mesh")  # a DTensor, which takes a second to import


def _twin(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """The same module with the same parameters, buffers and hooks, of which parameters can be replaced."""
    if module not in made:
        twin = made[module] = module.__new__(type(module))
        twin.__dict__ = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()}
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else _twin(child, made)
    return made[module]


def _is_whole(block: nn.Module) -> bool:
    """Whether it has parameters, and is called itself."""
    return any(True for _ in block.parameters()) and not isinstance(block, nn.ModuleList | nn.ModuleDict)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The items of the outermost lists of modules, unless one shares a parameter with what is outside of it."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    outermost = [m for n, m in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    blocks = [block for each in outermost for block in each if _is_whole(block)]
    uses = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    within = [Counter(p for _, p in block.named_parameters(remove_duplicate=False)) for block in blocks]
    return blocks if all(uses[p] == count for own in within for p, count in own.items()) else []
