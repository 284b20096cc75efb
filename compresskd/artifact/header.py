"""The header of the compact form: msgpack, compressed by zlib with a dictionary of what headers usually say.

    [target, kwargs, modules, how tensors are stored, about, exceptions, quantized inputs, counters, words]

with empty values at the end left out. Names, shapes and types are those of the architecture, which is built
without memory to read them; keywords that equal the constructor's defaults are left out. Integers without a
dimension (the counters of batch norms) are written here, one for all where they are equal. See `structures` for
the modules, `ways` for how tensors are stored, `tokenizer` for the words.
"""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgpack
import torch
from torch import Tensor, nn

from compresskd.artifact.about import restore_about, shorten_about
from compresskd.artifact.construct import check_fit, furnish, num_values, skeleton
from compresskd.artifact.content import Content, check_plain, tied
from compresskd.artifact.description import INT64, Description, describe, understand
from compresskd.artifact.dictionary import DICTIONARY, plain_bytes
from compresskd.artifact.errors import ArtifactError
from compresskd.artifact.scan import structure_bytes
from compresskd.artifact.structures import restore, shorten
from compresskd.artifact.tokenizer import put_words, take_words, without_tokenizer
from compresskd.artifact.ways import usual_ways, ways_of
from compresskd.layers import surgery
from compresskd.quant.pack import QuantizedTensor

MAX_STRUCTURE = 2**20  # bytes of a header that are no text: a thousand label names take 3,000
MAX_BYTES = 2**26  # of a header, decompressed: the tokenizers of language models take up to 35 million
_RATIO = 32  # most of what decompression may make of each byte beyond the first million: tokenizers come to 6 to 10
_RAW = -15  # zlib without its own header and checksum
_EMPTY: tuple[Any, ...] = (
    "",
    {},
    b"",
    [],
    {},
    [],
    [],
    [],
    b"",
)  # fields at the end are left out where they are these
_MODULES, _ABOUT, _WORDS = 2, 4, 8  # places of fields
_OURS = "compresskd."


@dataclass(frozen=True)
class Packed:
    """A header as it is written.

    Attributes:
        data: the compressed header.
        names: of the tensors that the body has to hold, in order.
        has_ties: whether any of them has several names.
        has_words: whether the words of a tokenizer are apart.
        tokenizer: how many of its bytes are the tokenizer's.
    """

    data: bytes
    names: list[str]
    has_ties: bool
    has_words: bool
    tokenizer: int


@dataclass(frozen=True)
class Header:
    """A header with what the architecture adds to it: name, shape and way to store each tensor, in order.

    `counters` are the integers without a dimension by name; `inputs` the layers whose input is quantized; `same`
    gives of every tied name the one that the body has the values of.
    """

    architecture: dict[str, Any]
    modules: dict[str, dict[str, Any]]
    about: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    ways: dict[str, Description]
    inputs: list[str]
    counters: dict[str, int]
    same: dict[str, str]


def pack_header(content: Content, *, trust: Sequence[str] = ()) -> Packed:
    """The header of a model.

    Raises ValueError for a type of tensor that the format does not know, and where values differ that the
    architecture ties.
    """
    architecture, stored = content.architecture, num_values(content)
    model = skeleton(architecture, stored=stored, trust=trust)
    entries = shorten(content.modules, model)
    furnish(model, content.modules, stored=stored, trust=trust)
    check_fit(model, content.tensors)
    state, same = _own_tensors(model, tied_too=False)
    for name, holder in same.items():
        _check_same(name, content.tensors[name], holder, content.tensors[holder])
    ways = {name: describe(content.tensors[name]) for name in state}
    counters = [name for name, value in state.items() if _is_counter(value, ways[name])]
    roles, exceptions = usual_ways(state, list(ways.values()))
    path, (about, words) = architecture["target"], take_words(content.about)
    fields = [
        path.removeprefix(_OURS) if path.startswith(_OURS) else f":{path}",
        _without_defaults(architecture["kwargs"], path, trust),
        entries,
        roles,
        shorten_about(about, architecture["kwargs"]),
        exceptions,
        _positions(content, model),
        _counts([int(cast(Tensor, content.tensors[name])) for name in counters]),
        words,
    ]
    data, names = _packed(fields), [name for name in ways if name not in counters]
    tokenizer = 0
    if "tokenizer" in about.get("preprocessing", {}):
        fields[_ABOUT] = shorten_about(without_tokenizer(about), architecture["kwargs"])
        fields[_WORDS] = b""
        tokenizer = len(data) - len(_packed(fields))
    return Packed(data, names, bool(same), bool(words), tokenizer)


def _packed(fields: Sequence[Any]) -> bytes:
    """Without the empty ones at the end."""
    count = max((place for place, value in enumerate(fields, 1) if value), default=0)
    return compress(plain_bytes(fields[:count]))


def unpack_header(data: bytes, *, stored: int, tied_too: bool = False, trust: Sequence[str] = ()) -> Header:
    """Read what `pack_header` wrote.

    Args:
        data: the compressed header.
        tied_too: whether the body has tied tensors once for each name.
        stored: about how many values the file holds, against architectures out of proportion.
        trust: as `load`'s.

    Raises:
        ArtifactError: it cannot be decompressed or is no header. ValueError: it names what may not be built.
    """
    path, kwargs, entries, roles, about, exceptions, inputs, counters, words = _fields(decompress(data))
    path = path[1:] if path.startswith(":") else _OURS + path
    architecture = {"target": path, "kwargs": kwargs}
    model = skeleton(architecture, stored=stored, trust=trust)
    architecture = {"target": path, "kwargs": {**_defaults(path, trust), **kwargs}}
    modules = restore(entries, model)
    furnish(model, modules, stored=stored, trust=trust)
    state, same = _own_tensors(model, tied_too=tied_too)
    ways = dict(zip(state, ways_of(state, roles, exceptions), strict=True))
    counted = [name for name, value in state.items() if _is_counter(value, ways[name])]
    return Header(
        architecture,
        modules,
        put_words(restore_about(about, architecture["kwargs"]), words),
        {name: tuple(value.shape) for name, value in state.items()},
        {name: understand(way) for name, way in ways.items()},
        _layers(inputs, model),
        dict(zip(counted, _counted(counters, len(counted)), strict=True)),
        same,
    )


def _own_tensors(model: nn.Module, *, tied_too: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a network, tied tensors under their first name alone; the other names, each with the first."""
    state = model.state_dict(keep_vars=True)
    same = {} if tied_too else tied(state)
    return {name: value for name, value in state.items() if name not in same}, same


def _check_same(name: str, value: Any, holder: str, own: Any) -> None:
    """Raise ValueError where what the architecture ties has come apart."""
    parts = [(value, own)]
    if isinstance(value, QuantizedTensor) and isinstance(own, QuantizedTensor):
        parts = [(value.integers, own.integers), (value.scale, own.scale)]
    if value is not own and not all(isinstance(a, Tensor) and torch.equal(a, b) for a, b in parts):
        raise ValueError(f"'{name}' has other values than '{holder}', to which the architecture ties it")


def _fields(data: bytes) -> list[Any]:
    """All fields, of the right types. Raises ArtifactError where these are none."""
    if structure_bytes(data, MAX_STRUCTURE) > MAX_STRUCTURE:
        raise ArtifactError(f"header: more than {MAX_STRUCTURE:,} bytes of it are no text")
    try:
        fields = msgpack.unpackb(data)
    except ValueError as error:
        raise ArtifactError(f"header: it is no msgpack: {error}") from error
    if not isinstance(fields, list) or not 2 <= len(fields) <= len(_EMPTY):
        raise ArtifactError(f"header: expected 2 to {len(_EMPTY)} fields, got {fields!r:.80}")
    fields += _EMPTY[len(fields) :]
    for place, (value, empty) in enumerate(zip(fields, _EMPTY, strict=True)):
        kinds = (bytes, list) if place == _MODULES else type(empty)
        if not isinstance(value, kinds):
            raise ArtifactError(f"header: expected a {type(empty).__name__}, got {value!r:.80}")
        # bytes are the words, and the tensor trains, alone or in front of the other modules
        if not isinstance(value, bytes):
            check_plain(value[1:] if place == _MODULES else value, "header")
    return fields


def compress(data: bytes) -> bytes:
    """zlib without its wrapper, with the dictionary of usual headers."""
    coder = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return coder.compress(data) + coder.flush()


def decompress(data: bytes) -> bytes:
    """Read what `compress` wrote, as much as so many bytes may hold; ArtifactError for more, or anything else."""
    decoder = zlib.decompressobj(_RAW, DICTIONARY)
    most = min(MAX_BYTES, 2**20 + _RATIO * len(data))
    try:
        result = decoder.decompress(data, most)
    except zlib.error as error:
        raise ArtifactError(f"header: it cannot be decompressed: {error}") from error
    if decoder.unconsumed_tail:
        raise ArtifactError(f"header: it is larger than {most:,} bytes when decompressed")
    if not decoder.eof or decoder.unused_data:
        raise ArtifactError("header: the compressed data does not end where the header does")
    return result


def _is_counter(value: Tensor, way: Any) -> bool:
    return way == INT64 and value.ndim == 0


def _counts(values: list[int]) -> list[int]:
    """One where all are equal, none where all are zero."""
    if not any(values):
        return []
    return values[:1] if len(set(values)) == 1 else values


def _counted(counters: list[Any], count: int) -> list[int]:
    if not counters:
        return [0] * count
    if len(counters) not in (count, 1) or not all(type(value) is int for value in counters):
        raise ArtifactError(f"header: expected {count} counters, or one for all, got {counters!r:.80}")
    return counters * count if len(counters) == 1 else counters


def _positions(content: Content, model: nn.Module) -> list[int]:
    positions = {name: position for position, (name, _) in enumerate(model.named_modules())}
    return [positions[name] for name in content.activations]


def _layers(positions: list[Any], model: nn.Module) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    if not all(type(p) is int and 0 <= p < len(names) for p in positions) or len(set(positions)) < len(
        positions
    ):
        raise ArtifactError(
            f"header: expected positions of layers with quantized inputs, got {positions!r:.80}"
        )
    return [names[position] for position in positions]


def _without_defaults(kwargs: Mapping[str, Any], path: str, trust: Sequence[str]) -> dict[str, Any]:
    defaults = _defaults(path, trust)
    return {
        name: value
        for name, value in kwargs.items()
        if name not in defaults or json.dumps(value) != json.dumps(defaults[name])
    }


def _defaults(path: str, trust: Sequence[str]) -> dict[str, Any]:
    """Plain keyword defaults of a shipped architecture; those of other packages may change under the file."""
    if not path.startswith(_OURS):
        return {}
    parameters = inspect.signature(surgery.resolve_trusted(path, trust=trust)).parameters.values()
    return {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default
        for p in parameters
        if p.default is None or isinstance(p.default, str | bool | int | float | tuple)
    }
