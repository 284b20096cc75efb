"""The form for interchange: `model.safetensors` with its values, `structure.json` with how to build and read it.

Quantized integers lie there packed, as uint8, in the bit order of `compresskd.quant.pack`; the scales of tensor
`fc1.weight` are `fc1.weight:scale` (float16), its zero points `fc1.weight:zero_point` (int8), and those of the
8-bit input of layer `fc1` are `fc1:input_scale` and `fc1:input_zero_point`. The structure says of every
quantized tensor its bits, grid, granularity and shape, and of every tied name the one that its values are under.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compresskd.artifact.content import Content, check_plain, tied
from compresskd.artifact.errors import ArtifactError, refusing
from compresskd.artifact.tensors import num_bytes as num_bytes_of
from compresskd.artifact.tensors import read_tensors, unambiguous, write_tensors
from compresskd.quant.granularity import granularity_from_plain
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, pack, unpack
from compresskd.run import read_bytes
from compresskd.version import __version__

FORMAT = 3  # 1 had no quantized tensors, 2 no tied ones; a model without them is written as 2
WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"
_MAX_STRUCTURE = 2**26  # bytes
_NEEDED = {"format", "architecture", "modules", "sha256"}


def write(content: Content, folder: Path) -> None:
    """Write both files into an existing folder. Raises OSError where they cannot be written."""
    described, stored = _structure(content), _stored(content)
    described["sha256"] = _digest(write_tensors(stored, folder / WEIGHTS), described)
    (folder / STRUCTURE).write_text(_text(described), encoding="utf-8")


def num_bytes(content: Content) -> int:
    """Bytes of both files together, which are not written."""
    described = _structure(content) | {"sha256": hashlib.sha256().hexdigest()}
    return num_bytes_of(_stored(content)) + len(_text(described).encode())


def _structure(content: Content) -> dict[str, Any]:
    """What the structure says, besides the digest."""
    same = tied(content.tensors)
    return {
        "format": FORMAT if same else FORMAT - 1,
        "compresskd": __version__,
        "architecture": content.architecture,
        "modules": content.modules,
        "tensors": {
            k: _described(v)
            for k, v in content.tensors.items()
            if isinstance(v, QuantizedTensor) and k not in same
        },
        "activations": list(content.activations),
        "about": content.about,
        **({"tied": same} if same else {}),
    }


def _text(described: Mapping[str, Any]) -> str:
    return json.dumps(described, separators=(",", ":"))


def read(folder: Path) -> Content:
    """Read what `write` wrote, verified. Raises ArtifactError saying what is wrong."""
    described = _read_structure(folder / STRUCTURE)
    stored, found = read_tensors(folder / WEIGHTS)
    if _digest(found, described) != described["sha256"]:
        raise ArtifactError(
            f"{folder} is damaged: the SHA-256 of {WEIGHTS} and {STRUCTURE} is not the one recorded there"
        )
    with refusing(folder):
        activations = {name: _activation(name, stored) for name in described.get("activations", [])}
        quantized = {k: _quantized(k, v, stored) for k, v in described.get("tensors", {}).items()}
        return Content(
            described["architecture"],
            described["modules"],
            _with_tied({**stored, **quantized}, described.get("tied", {})),
            activations,
            described.get("about", {}),
        )


def digest(weights: bytes, described: Mapping[str, Any]) -> str:
    """SHA-256 over the weights file and what the structure says besides this very digest."""
    return _digest(hashlib.sha256(weights), described)


def _digest(result: hashlib._Hash, described: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in described.items() if k != "sha256"}
    result.update(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    return result.hexdigest()


def _described(tensor: QuantizedTensor) -> dict[str, Any]:
    grid = tensor.grid
    return {
        "bits": grid.bits,
        "grid": grid.kind,
        "granularity": tensor.granularity.plain(),
        "shape": list(tensor.shape),
    }


def _stored(content: Content) -> dict[str, Tensor]:
    """The tensors of the file of weights, tied ones once."""
    stored: dict[str, Tensor] = {}
    same = tied(content.tensors)
    for name, tensor in content.tensors.items():
        if name in same:
            continue
        if isinstance(tensor, Tensor):
            stored[name] = tensor
            continue
        packed = np.frombuffer(pack(tensor.integers, tensor.grid), np.uint8)
        stored[name] = torch.from_numpy(packed.copy())
        stored[f"{name}:scale"] = tensor.scale
        if tensor.zero_point is not None:
            stored[f"{name}:zero_point"] = tensor.zero_point
    for layer, (scale, zero_point) in content.activations.items():
        stored[f"{layer}:input_scale"], stored[f"{layer}:input_zero_point"] = scale, zero_point
    return stored


def _quantized(name: str, how: Any, stored: dict[str, Tensor]) -> QuantizedTensor:
    """Take tensor `name` and what belongs to it out of `stored`."""
    if not isinstance(how, dict) or how.keys() != {"bits", "grid", "granularity", "shape"}:
        raise ArtifactError(f"'{name}': expected bits, grid, granularity and shape, got {how!r}")
    shape = how["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ArtifactError(f"'{name}': expected a shape of whole numbers from 0, got {shape!r}")
    grid, granularity = Grid(how["bits"], how["grid"]), granularity_from_plain(how["granularity"])
    packed = _take(stored, name, torch.uint8)
    scale = _take(stored, f"{name}:scale", torch.float16)
    zero_point = _take(stored, f"{name}:zero_point", torch.int8) if grid.has_zero_point else None
    try:
        integers = unpack(packed.numpy().tobytes(), math.prod(shape), grid).reshape(shape)
        return QuantizedTensor(integers, scale, zero_point, grid, granularity)
    except ValueError as error:
        raise ArtifactError(f"'{name}': {error}") from error


def _with_tied(
    tensors: dict[str, Tensor | QuantizedTensor], same: Mapping[str, Any]
) -> dict[str, Tensor | QuantizedTensor]:
    for name, holder in same.items():
        if name in tensors or holder not in tensors or holder in same:
            raise ArtifactError(f"tied: '{name}' cannot have the values of {holder!r:.80}")
    return tensors | {name: tensors[holder] for name, holder in same.items()}


def _activation(layer: str, stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    scale = _take(stored, f"{layer}:input_scale", torch.float16)
    zero_point = _take(stored, f"{layer}:input_zero_point", torch.int8)
    for value in (scale, zero_point):
        if value.shape != (1,):
            raise ArtifactError(f"'{layer}': expected one scale of its input, got shape {tuple(value.shape)}")
    return scale, zero_point


def _take(stored: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    if name not in stored:
        raise ArtifactError(f"Missing key: {name}")
    tensor = stored.pop(name)
    if tensor.dtype != dtype:
        raise ArtifactError(f"'{name}': expected {dtype}, got {tensor.dtype}")
    return tensor


def _read_file(path: Path) -> bytes:
    with refusing(path):
        return read_bytes(path, at_most=_MAX_STRUCTURE if path.name == STRUCTURE else None)


def _read_structure(path: Path) -> dict[str, Any]:
    text = _read_file(path)
    try:
        described = json.loads(text.decode("utf-8"), object_pairs_hook=unambiguous)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    if not isinstance(described, dict) or not described.keys() >= _NEEDED:
        raise ArtifactError(f"{path} is not a model's structure: expected the keys {sorted(_NEEDED)}")
    if described["format"] not in range(1, FORMAT + 1):
        raise ArtifactError(
            f"{path} has format {described['format']!r}; this version reads formats 1 to {FORMAT}"
        )
    with refusing(path):
        _check_types(described)
    return described


def _check_types(described: Mapping[str, Any]) -> None:
    check_architecture(described["architecture"], described["modules"])
    for key, kind in (("tensors", dict), ("activations", list), ("about", dict), ("tied", dict)):
        value = described.get(key, kind())
        if not isinstance(value, kind):
            raise ArtifactError(f"{key}: expected a {kind.__name__}, got {type(value).__name__}")
        check_plain(value, key)
    if not all(isinstance(name, str) for name in described.get("activations", [])):
        raise ArtifactError(f"activations: expected names of layers, got {described['activations']!r}")


def check_architecture(architecture: Any, modules: Any) -> None:
    """Raise ArtifactError where these are not of the form that Content documents."""
    if not (isinstance(architecture, dict) and isinstance(architecture.get("kwargs"), dict)):
        raise ArtifactError(f"architecture: expected a target and its kwargs, got {architecture!r:.200}")
    if not (
        isinstance(modules, dict) and all(isinstance(m, dict) and "class" in m for m in modules.values())
    ):
        raise ArtifactError(f"modules: expected a structure with its class by name, got {modules!r:.200}")
    check_plain(architecture, "architecture")
    check_plain(modules, "modules")
