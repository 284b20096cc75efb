"""What became of every module of a network that holds weights: in which form, in how many bits, or why as it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from compresskd import layers
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.targets import join, unquantized

ROOT = "(model)"  # the name of the network itself, for parameters that it holds directly
LARGE = 0.05  # share of the bytes from which modules of a kind that no rule covers are worth a warning


def coverage(
    model: nn.Module, stored: Mapping[str, Tensor | QuantizedTensor], skipped: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Of every module that holds parameters or saved floating-point buffers, how it is stored.

    Args:
        model: as read back from its file.
        stored: its tensors, as the file has them.
        skipped: of layers that a stage left as they were, the reason that it gave.

    Returns:
        By name of the module: kind (its class), bytes (of its tensors before entropy coding; of tied ones in their
        first module alone), share (of those of all tensors), bits (the fewest), form (the class of a factorized layer,
        or None), covered (whether it is of a kind that is compressed), weights_of (where its weight is another one's),
        reason (where nothing was done to it), is_matrix (whether what was left has matrices, not vectors alone).
    """
    owners = _owners(model)
    held: dict[str, dict[str, Tensor | QuantizedTensor]] = {}
    counted: set[int] = set()
    sizes: dict[str, int] = {}
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, value in stored.items():
        if name not in owners or not (isinstance(value, QuantizedTensor) or value.is_floating_point()):
            continue
        owner = owners[name]
        held.setdefault(owner, {})[name] = value
        if id(value) not in counted:
            counted.add(id(value))
            sizes[owner] = sizes.get(owner, 0) + _bytes(value)
        if first.setdefault(id(value), owner) != owner and len(value.shape) > 1:
            ties[owner] = first[id(value)]
    total = max(1, sum(sizes.values()))
    reasons = {**unquantized(model), **skipped}
    found: dict[str, dict[str, Any]] = {}
    for owner, values in held.items():
        module = model.get_submodule(owner)
        size = sizes.get(owner, 0)
        entry = {"kind": layers.type_of(module).__name__, "bytes": size, "share": size / total}
        entry |= _form(module, values.values())
        if owner in ties:
            entry["weights_of"] = ties[owner]
        if entry["form"] is None and entry["bits"] >= 16:
            entry["is_matrix"] = any(len(value.shape) > 1 for value in values.values())
            entry["reason"] = reasons.get(owner) or _reason(module, entry["is_matrix"])
        found[owner or ROOT] = entry
    return found


def uncovered(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Modules that no rule covers, each with its share, of kinds that take more than a twentieth of the bytes.

    The forty matrices of a network's depth are one kind: none of them is large, all together may be the network.
    """
    left = {name: each for name, each in found.items() if each.get("is_matrix") and not each["covered"]}
    shares: dict[str, float] = {}
    for each in left.values():
        shares[each["kind"]] = shares.get(each["kind"], 0.0) + each["share"]
    return {name: each["share"] for name, each in left.items() if shares[each["kind"]] > LARGE}


def _owners(model: nn.Module) -> dict[str, str]:
    """By name of a tensor, the module that uses it: that of its cores, its factors, or what it is made of."""
    owners: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key in (*module._parameters, *module._buffers):
            owners[join(name, key)] = _owner(model, name)
    return owners


def _owner(model: nn.Module, name: str) -> str:
    parts = name.split(".") if name else []
    if "parametrizations" in parts:
        parts = parts[: parts.index("parametrizations")]
    outer = ".".join(parts[:-1])
    if parts and parts[-1] in layers.WEIGHTS and layers.is_factorized(model.get_submodule(outer)):
        return outer
    return ".".join(parts)


def _form(module: nn.Module, values: Iterable[Tensor | QuantizedTensor]) -> dict[str, Any]:
    bits = [
        v.grid.bits if isinstance(v, QuantizedTensor) else 8 * v.itemsize
        for v in values
        if math.prod(v.shape)
    ]
    covered = layers.is_factorized(module) or layers.obstacle(module) is None
    return {
        "bits": min(bits, default=32),
        "form": layers.type_of(module).__name__ if layers.is_factorized(module) else None,
        "covered": covered,
    }


def _reason(module: nn.Module, is_matrix: bool) -> str:
    if not is_matrix:
        return "it holds vectors alone"
    return layers.obstacle(module) or "no stage was to change it"


def _bytes(value: Tensor | QuantizedTensor) -> int:
    return value.num_bytes() if isinstance(value, QuantizedTensor) else value.numel() * value.itemsize
