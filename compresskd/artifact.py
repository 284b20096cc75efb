"""A model on disk: `model.safetensors` with its values, `structure.json` with how to build it.

The structure holds the architecture (constructor path and keywords) and, for every factorized module, its modes
and ranks, so that a model reloads with no configuration at hand. Nothing in the files is executed: architectures
are looked up in compresskd, or in packages that the caller names in `trust`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from compresskd import __version__, swap
from compresskd.models.build import build, spec_of

FORMAT = 1
_WEIGHTS, _STRUCTURE = "model.safetensors", "structure.json"


class ArtifactError(ValueError):
    """A model's folder is incomplete, damaged, or names what may not be loaded."""


def save(model: nn.Module, directory: Path) -> int:
    """Write `model` to `directory`, replacing what was there as a whole.

    Returns the bytes that the folder takes on disk, everything included.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        # clone: tied parameters share memory, which safetensors refuses; contiguous: channels-last is no layout of it
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        save_file(tensors, temporary / _WEIGHTS, metadata={"format": "pt"})
        described = {
            "format": FORMAT,
            "compresskd": __version__,
            "architecture": spec_of(model),
            "modules": swap.structure(model),
            "sha256": _digest(temporary / _WEIGHTS),
        }
        (temporary / _STRUCTURE).write_text(json.dumps(described, separators=(",", ":")), encoding="utf-8")
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return stored_bytes(directory)


def load(directory: Path, *, device: str | torch.device = "cpu", trust: Sequence[str] = ()) -> nn.Module:
    """Read a model that `save` wrote; it comes back in evaluation mode.

    Args:
        directory: the folder with `model.safetensors` and `structure.json`.
        device: where its parameters go.
        trust: packages besides compresskd whose architecture and modules may be built.

    Raises:
        ArtifactError: a file is missing, damaged, of an unknown format, or does not fit its structure.
    """
    described = _read_structure(directory)
    weights = directory / _WEIGHTS
    try:
        digest = _digest(weights)
    except OSError as error:
        raise ArtifactError(f"{weights} cannot be read: {error.strerror or error}") from error
    if digest != described["sha256"]:
        raise ArtifactError(f"{weights} is damaged: its SHA-256 is not the one that {_STRUCTURE} recorded")
    try:
        model = build_empty(described, trust=trust)
        model.load_state_dict(load_file(weights))
    except (ValueError, TypeError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{directory}: {error}") from error
    return model.to(device).eval()


def build_empty(described: dict[str, Any], *, trust: Sequence[str] = ()) -> nn.Module:
    """The module of a structure file, with parameters of no particular value."""
    architecture = described["architecture"]
    _check_trusted(architecture, trust)
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


def _check_trusted(value: Any, trust: Sequence[str]) -> None:
    """Refuse an architecture, or a part of one, that lies outside compresskd and the packages in `trust`."""
    if isinstance(value, list):
        for item in value:
            _check_trusted(item, trust)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("target", "_target_"):
                swap.check_trusted(item, trust=trust)
            else:
                _check_trusted(item, trust)


def _read_structure(directory: Path) -> dict[str, Any]:
    path = directory / _STRUCTURE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    needed = {"format", "architecture", "modules", "sha256"}
    if not isinstance(described, dict) or not needed <= described.keys():
        raise ArtifactError(f"{path} is not a model's structure: expected the keys {sorted(needed)}")
    if described["format"] != FORMAT:
        raise ArtifactError(f"{path} has format {described['format']}; this version reads format {FORMAT}")
    return described


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
