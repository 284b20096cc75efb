"""A model on disk: `model.safetensors` with its values, `structure.json` with how to build it.

The structure holds the architecture (constructor path and keywords) and, for every factorized module, its modes
and ranks, so that a model reloads with no configuration at hand. Nothing in the files is executed: architectures
are looked up in compresskd, or in packages that the caller names in `trust`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compresskd import __version__, swap
from compresskd.models import target
from compresskd.models.build import build, spec_of
from compresskd.run import atomic_folder

FORMAT = 1
_WEIGHTS, _STRUCTURE = "model.safetensors", "structure.json"


class ArtifactError(ValueError):
    """A model's folder is incomplete, damaged, or names what may not be loaded."""


def save(model: nn.Module, directory: Path) -> int:
    """Write `model` to `directory`, replacing what was there as a whole.

    Returns the bytes that the folder takes on disk, everything included.
    Raises ValueError for a model that does not say how it was built, OSError where it cannot be written.
    """
    described = {
        "format": FORMAT,
        "compresskd": __version__,
        "architecture": spec_of(model),
        "modules": swap.structure(model),
    }
    with atomic_folder(directory) as folder:
        # clone: tied parameters share memory, which safetensors refuses; contiguous: channels-last is no layout of it
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        _write(tensors, folder / _WEIGHTS)
        described["sha256"] = _digest(folder / _WEIGHTS, described)
        (folder / _STRUCTURE).write_text(json.dumps(described, separators=(",", ":")), encoding="utf-8")
    return stored_bytes(directory)


def load(directory: Path, *, device: str | torch.device = "cpu", trust: Sequence[str] = ()) -> nn.Module:
    """Read a model that `save` wrote; it comes back in evaluation mode.

    Args:
        directory: the folder with `model.safetensors` and `structure.json`.
        device: where its parameters go.
        trust: packages besides compresskd whose architecture and modules may be built.

    Raises:
        ArtifactError: a file is missing, damaged, of an unknown format, does not fit its structure, or names
            what lies outside compresskd and `trust`.
    """
    described = _read_structure(directory)
    weights = directory / _WEIGHTS
    try:
        digest = _digest(weights, described)
    except OSError as error:
        raise ArtifactError(f"{weights} cannot be read: {error.strerror or error}") from error
    if digest != described["sha256"]:
        raise ArtifactError(
            f"{directory} is damaged: the SHA-256 of {_WEIGHTS} and {_STRUCTURE} is not the one recorded there"
        )
    try:
        model = build_empty(described, trust=trust)
        _fill(model, load_file(weights))
    except (
        ValueError,
        TypeError,
        RuntimeError,
        KeyError,
        AttributeError,
        safetensors.SafetensorError,
    ) as error:
        raise ArtifactError(f"{directory}: {error}") from error
    return model.to(device).eval()


def build_empty(described: dict[str, Any], *, trust: Sequence[str] = ()) -> nn.Module:
    """The module of a structure file, with parameters of no particular value."""
    architecture = described["architecture"]
    for path in targets(architecture):
        swap.resolve(path, trust=trust)
    model = build(architecture["target"], architecture["kwargs"], seed=0)
    swap.apply_structure(model, described["modules"], trust=trust)
    return model


def stored_bytes(directory: Path) -> int:
    """Bytes of all files of a model's folder."""
    return sum(path.stat().st_size for path in directory.iterdir())


def bytes_of(model: nn.Module) -> int:
    """Bytes that `save` takes on disk for this model, by saving it."""
    with tempfile.TemporaryDirectory() as folder:
        return save(model, Path(folder) / "model")


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of a SHA-256 over the names, types, shapes and values of all tensors of `model`."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def targets(architecture: Mapping[str, Any]) -> list[str]:
    """Every dotted path that building an architecture `{"target": ..., "kwargs": ...}` would construct."""
    return [architecture.get("target", ""), *_nested_targets(architecture["kwargs"])]


def packages(model: nn.Module) -> list[str]:
    """The packages besides compresskd that `load` must be told to trust for this model."""
    named = [*targets(spec_of(model)), *(values["class"] for values in swap.structure(model).values())]
    homes = [getattr(target.resolve(path), "__module__", None) or path for path in named]
    return sorted({path.partition(".")[0] for path in (*named, *homes)} - {"compresskd"})


def _nested_targets(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [path for item in value for path in _nested_targets(item)]
    if isinstance(value, Mapping):
        own = [value["_target_"]] if "_target_" in value else []
        return own + [path for item in value.values() for path in _nested_targets(item)]
    return []


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # how it says that the disk is full
        raise OSError(errno.EIO, str(error), str(path)) from error


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the values in the type in which they were stored, whatever type the constructor makes."""
    for name, own in model.state_dict(keep_vars=True).items():
        if name in tensors and own.dtype != tensors[name].dtype:
            own.data = own.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)


def _read_structure(directory: Path) -> dict[str, Any]:
    path = directory / _STRUCTURE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    needed = {"format", "architecture", "modules", "sha256"}
    if not isinstance(described, dict) or not needed <= described.keys():
        raise ArtifactError(f"{path} is not a model's structure: expected the keys {sorted(needed)}")
    if described["format"] != FORMAT:
        raise ArtifactError(f"{path} has format {described['format']!r}; this version reads format {FORMAT}")
    architecture, modules = described["architecture"], described["modules"]
    if not (isinstance(architecture, dict) and isinstance(architecture.get("kwargs"), dict)):
        raise ArtifactError(f"{path}: architecture: expected a target and its kwargs, came {architecture!r}")
    if not (
        isinstance(modules, dict) and all(isinstance(m, dict) and "class" in m for m in modules.values())
    ):
        raise ArtifactError(f"{path}: modules: expected a structure with its class by name, came {modules!r}")
    return described


def _digest(weights: Path, described: Mapping[str, Any]) -> str:
    """SHA-256 over the weights file and what the structure says besides this very digest."""
    rest = {k: v for k, v in described.items() if k != "sha256"}
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest()
