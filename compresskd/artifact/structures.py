"""Factorized modules in few bytes: where, what class, and what the layer that was replaced does not tell.

Tensor trains are written as bytes, each number in 7 bits a byte (`varint`): 4 x how many modules after the one
before + the number of the class, the number of modes, and the modes and ranks one after the other. What they do
not say is that of the layer which was replaced. Any other module is a list: `[position, class, *fields]` with
the fields of the table; `[position, path, structure]` where the class is not in it or the layer tells otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from compresskd.artifact.errors import ArtifactError
from compresskd.artifact.varint import read_varint, varint
from compresskd.layers import surgery

# class, what is stored, what the layer of the architecture tells. Rows may be added, none may change: their order is
# part of the format.
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
    ("compresskd.tt.layers.interpolative.InterpolativeLinear", ("ranks",), _LINEAR),
    ("compresskd.tt.layers.grouped.GroupedEmbedding", ("counts", "ranks"), _EMBEDDING[:3]),
)
_NUM_TRAINS = 3  # the first rows, which are written as bytes


def shorten(modules: Mapping[str, Mapping[str, Any]], architecture: nn.Module) -> bytes | list[Any]:
    """What `surgery.structure` answered, against the architecture as its constructor makes it.

    The tensor trains; where there are other modules too a list of these, with the tensor trains in front.
    """
    born = surgery.structure(architecture)
    trains, others, last = b"", [], 0
    for position, (name, replaced) in enumerate(architecture.named_modules()):
        structure = modules.get(name)
        if structure is None or structure == born.get(name):
            continue
        entry = _entry(structure, replaced)
        if isinstance(entry[0], int) and entry[0] < _NUM_TRAINS and _is_train(entry):
            number, values = entry[0], entry[1:]
            count = len(values[0])
            trains += b"".join(map(varint, [4 * (position - last) + number, count, *_flat(values)]))
            last = position
        else:
            others.append([position, *entry])
    return [trains, *others] if others else trains


def restore(modules: Any, architecture: nn.Module) -> dict[str, dict[str, Any]]:
    """What `shorten` was given. Raises ArtifactError where something is no module."""
    trains, *others = modules if isinstance(modules, list) and modules else [modules]
    if not isinstance(trains, bytes):
        raise ArtifactError(f"modules: expected bytes, got {trains!r:.80}")
    by_position = list(architecture.named_modules())
    found = surgery.structure(architecture)
    for entry in [*_read_trains(trains), *others]:
        if not isinstance(entry, list) or len(entry) < 3 or type(entry[0]) is not int:
            raise ArtifactError(f"modules: expected [position, class, ...], got {entry!r:.80}")
        if not 0 < entry[0] < len(by_position):
            raise ArtifactError(
                f"modules: position {entry[0]} is none of the architecture's 1..{len(by_position) - 1}"
            )
        name, replaced = by_position[entry[0]]
        found[name] = _structure(entry[1], entry[2:], replaced)
    return {name: found[name] for name, _ in by_position if name in found}


def _entry(structure: Mapping[str, Any], replaced: nn.Module) -> list[Any]:
    path = structure["class"]
    for number, (name, stored, told) in enumerate(_CLASSES):
        is_of_row = name == path and structure.keys() == {"class", *stored, *told}
        if is_of_row and all(_same(structure[k], _told(replaced, k)) for k in told):
            return [number, *(structure[k] for k in stored)]
    return [path, {k: v for k, v in structure.items() if k != "class"}]


def _structure(code: Any, values: list[Any], replaced: nn.Module) -> dict[str, Any]:
    if isinstance(code, str) and len(values) == 1 and isinstance(values[0], dict):
        return {**values[0], "class": code}
    if type(code) is not int or not 0 <= code < len(_CLASSES):
        raise ArtifactError(f"modules: expected the number or the path of a class, got {code!r:.80}")
    path, stored, told = _CLASSES[code]
    if len(values) != len(stored):
        raise ArtifactError(f"modules: {path} takes {', '.join(stored)}, got {len(values)} values")
    return {"class": path, **dict(zip(stored, values, strict=True)), **{k: _told(replaced, k) for k in told}}


def _is_train(entry: list[Any]) -> bool:
    """Whether all lengths follow from the first, and all numbers from 0."""
    *modes, ranks = entry[1:]
    same = all(len(dims) == len(modes[0]) for dims in modes) and len(ranks) == len(modes[0]) - 1
    return same and all(type(value) is int and value >= 0 for value in _flat(entry[1:]))


def _flat(values: Any) -> list[Any]:
    return [item for value in values for item in (_flat(value) if isinstance(value, list) else [value])]


def _read_trains(data: bytes) -> Iterator[list[Any]]:
    """`[position, class, *fields]` of every tensor train."""
    position, place = 0, 0

    def take(count: int) -> list[int]:
        nonlocal place
        if count > len(data) - place:
            raise ArtifactError(
                f"modules: expected {count} numbers, there are {len(data) - place} bytes left"
            )
        values = []
        for _ in range(count):
            value, place = read_varint(data, place, "modules")
            values.append(value)
        return values

    while place < len(data):
        step, count = take(2)
        position += step // 4
        number = step % 4
        if number >= _NUM_TRAINS or count == 0:
            raise ArtifactError(f"modules: no tensor train has the number {number} and {count} modes")
        if number == 1:  # stages are pairs
            pairs = take(2 * count)
            modes: list[Any] = [[list(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]]
        else:
            modes = [take(count), take(count)]
        yield [position, number, *modes, take(count - 1)]


def _told(replaced: nn.Module, key: str) -> Any:
    value = getattr(replaced, key, None)
    if key == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
