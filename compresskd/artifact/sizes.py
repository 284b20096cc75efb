"""What a stored model takes, and the final model of a run in both forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compresskd.artifact import compact, folder
from compresskd.artifact.construct import num_values, skeleton
from compresskd.artifact.content import Content
from compresskd.artifact.files import MODEL, read
from compresskd.quant.pack import QuantizedTensor
from compresskd.run import atomic_folder

COMPACT = f"{MODEL}{compact.SUFFIX}"


def compact_sizes(content: Content, *, trust: Sequence[str] = ()) -> dict[str, int]:
    """Bytes of the compact file, and of what it would be without each of the ways to make it smaller.

    Returns:
        file_bytes: as written. packed_bytes: without entropy coding. float_bytes: with every tensor in the type
        in which it is computed with. dense_bytes: that of the architecture without factorized modules.
        tokenizer_bytes: of file_bytes those of the tokenizer; only where there is one.
    """

    split = compact.split_of(content, trust=trust)
    floats = replace(content, tensors=_placeholders(content.tensors, _computed), activations={})
    dense = skeleton(content.architecture, stored=num_values(content), trust=trust).state_dict(keep_vars=True)
    zeros, dense = replace(floats, modules={}, tensors=_placeholders(dense, _zeros)), None
    return {
        "file_bytes": split.total,
        "packed_bytes": _packed(content, split),
        "float_bytes": compact.split_of(floats, trust=trust).total,
        "dense_bytes": compact.split_of(zeros, trust=trust).total,
        **({"tokenizer_bytes": split.tokenizer} if split.tokenizer else {}),
    }


def _packed(content: Content, split: compact.Split) -> int:
    """Bytes of the file without entropy coding, from where those with it are."""
    quantized = {id(v): v for v in content.tensors.values() if isinstance(v, QuantizedTensor)}.values()
    integers = sum(value.grid.packed_bytes(value.shape.numel()) for value in quantized)
    return split.total - split.integers + integers


def _placeholders(
    tensors: Mapping[str, Tensor | QuantizedTensor], make: Callable[[Any], Tensor]
) -> dict[str, Tensor]:
    """What `make` makes of each; tied ones stay the very same."""
    made: dict[int, Tensor] = {}
    for value in tensors.values():
        if id(value) not in made:
            made[id(value)] = make(value)
    return {name: made[id(value)] for name, value in tensors.items()}


def _computed(value: Tensor | QuantizedTensor) -> Tensor:
    """A stand-in in the type in which the tensor is computed with; what counts something is told by its value."""
    if isinstance(value, QuantizedTensor):
        return _zeros(value, torch.float32)
    if not value.is_floating_point():
        return value
    return _zeros(value, torch.float32 if value.dtype == torch.float16 else value.dtype)


def _zeros(value: Tensor | QuantizedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros of this shape that take no memory."""
    if dtype is None:
        assert isinstance(value, Tensor)
        dtype = value.dtype
    return torch.zeros((), dtype=dtype).expand(value.shape)


def write_final(
    checkpoint: Path, directory: Path, about: Mapping[str, Any], *, trust: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the model of a checkpoint to `directory`/model in both forms, replacing what was there as a whole.

    Returns:
        What the record says of it: file_bytes, packed_bytes, interchange_bytes (safetensors and structure), and
        where the bytes of the compact file are.
    """
    content = replace(read(checkpoint, trust=trust), about=about)
    with atomic_folder(directory / MODEL) as temporary:
        folder.write(content, temporary)
        interchange = sum(file.stat().st_size for file in temporary.iterdir())
        split = compact.write_compact(content, temporary / COMPACT, trust=trust)
    return {
        "file_bytes": split.total,
        "packed_bytes": _packed(content, split),
        "interchange_bytes": interchange,
        "split": asdict(split),
    }
