"""What a stored model takes, and the final model of a run in both forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """

    def size(content: Content, *, coded: bool = True) -> int:
        return compact.encode(content, coded=coded, trust=trust)[1].total

    floats = replace(content, tensors={k: _computed(v) for k, v in content.tensors.items()}, activations={})
    dense = skeleton(content.architecture, stored=num_values(content), trust=trust).state_dict()
    zeros = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in dense.items()}
    return {
        "file_bytes": size(content),
        "packed_bytes": size(content, coded=False),
        "float_bytes": size(floats),
        "dense_bytes": size(replace(floats, modules={}, tensors=zeros)),
    }


def _computed(value: Tensor | QuantizedTensor) -> Tensor:
    if isinstance(value, QuantizedTensor):
        return value.dequantize()
    return value.float() if value.dtype == torch.float16 else value


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
    packed = compact.encode(content, coded=False, trust=trust)[1].total
    return {
        "file_bytes": split.total,
        "packed_bytes": packed,
        "interchange_bytes": interchange,
        "split": asdict(split),
    }
