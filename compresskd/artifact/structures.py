"""Factorized modules in few bytes: a position, a number for the class, and what the replaced layer does not tell.

`[position, class, *fields, {differences}]`: the position is that of the module in the architecture, the fields
are those of the table, and whatever else a structure says is that of the module that was replaced, unless the
differences say otherwise. A class outside the table has its path and its whole structure instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from compresskd import swap
from compresskd.artifact.errors import ArtifactError

# class: what is stored, what the layer of the architecture tells. Rows may be added, none may change: their order
# is part of the format.
_LINEAR = ("in_features", "out_features", "bias")
_CONV = ("in_channels", "out_channels", "stride", "padding", "dilation", "padding_mode", "bias")
_EMBEDDING = ("num_embeddings", "embedding_dim", "padding_idx", "sparse")
_CLASSES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("compresskd.tt.linear.TTLinear", ("input_dims", "output_dims", "ranks"), _LINEAR),
    ("compresskd.tt.conv.TTConv2d", ("stages", "ranks"), _CONV),
    ("compresskd.tt.embedding.TTEmbedding", ("vocabulary_dims", "embedding_dims", "ranks"), _EMBEDDING),
    ("compresskd.tt.tucker.TuckerLinear", ("input_dims", "output_dims", "ranks"), ("bias",)),
    ("compresskd.tt.cp.CPLinear", ("input_dims", "output_dims", "ranks"), ("bias",)),
    ("compresskd.tt.cp.CPConv2d", ("kernel_size", "ranks"), _CONV),
    ("compresskd.models.folded.FoldedBatchNorm", ("scale", "bias"), ("num_features",)),
)


def shorten(modules: Mapping[str, Mapping[str, Any]], architecture: nn.Module) -> list[list[Any]]:
    """The entries of `swap.structure`'s answer, against the architecture as its constructor makes it."""
    positions = {name: position for position, (name, _) in enumerate(architecture.named_modules())}
    born = swap.structure(architecture)
    return [
        [positions[name], *_entry(structure, architecture.get_submodule(name))]
        for name, structure in modules.items()
        if born.get(name) != structure
    ]


def restore(entries: Any, architecture: nn.Module) -> dict[str, dict[str, Any]]:
    """What `shorten` was given. Raises ArtifactError where an entry is none."""
    if not isinstance(entries, list):
        raise ArtifactError(f"modules: expected a list, got {type(entries).__name__}")
    by_position = list(architecture.named_modules())
    modules = swap.structure(architecture)
    for entry in entries:
        if not isinstance(entry, list) or len(entry) < 3 or type(entry[0]) is not int:
            raise ArtifactError(f"modules: expected [position, class, ...], got {entry!r:.80}")
        if not 0 < entry[0] < len(by_position):
            raise ArtifactError(
                f"modules: position {entry[0]} is none of the architecture's 1..{len(by_position) - 1}"
            )
        name, replaced = by_position[entry[0]]
        modules[name] = _structure(entry[1], entry[2:], replaced)
    return {name: modules[name] for name, _ in by_position if name in modules}


def _entry(structure: Mapping[str, Any], replaced: nn.Module) -> list[Any]:
    path = structure["class"]
    for number, (name, stored, told) in enumerate(_CLASSES):
        if name == path and structure.keys() == {"class", *stored, *told}:
            differences = {k: structure[k] for k in told if not _same(structure[k], _told(replaced, k))}
            return [number, *(structure[k] for k in stored), *([differences] if differences else [])]
    return [path, {k: v for k, v in structure.items() if k != "class"}]


def _structure(code: Any, values: list[Any], replaced: nn.Module) -> dict[str, Any]:
    if isinstance(code, str) and len(values) == 1 and isinstance(values[0], dict):
        return {**values[0], "class": code}
    if type(code) is not int or not 0 <= code < len(_CLASSES):
        raise ArtifactError(f"modules: expected the number or the path of a class, got {code!r:.80}")
    path, stored, told = _CLASSES[code]
    differences = values[len(stored)] if len(values) == len(stored) + 1 else {}
    if not len(stored) <= len(values) <= len(stored) + 1 or not isinstance(differences, dict):
        raise ArtifactError(f"modules: {path} takes {', '.join(stored)}, got {len(values)} values")
    given = {**dict(zip(stored, values, strict=False)), **differences}
    return {"class": path} | {k: given[k] if k in given else _told(replaced, k) for k in (*stored, *told)}


def _told(replaced: nn.Module, key: str) -> Any:
    value = getattr(replaced, key, None)
    if key == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
