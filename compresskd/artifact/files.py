"""Models on disk: whichever form they are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from compresskd.artifact import compact, construct, folder
from compresskd.artifact.content import Content, check_finite, content_of
from compresskd.artifact.errors import ArtifactError, refusing
from compresskd.artifact.preprocess import Preprocess
from compresskd.run import FINISHED, RECORD, atomic_folder, read_record
from compresskd.trust import granted

MODEL = "model"  # of a run directory: its final model in both forms


def save(model: nn.Module, directory: Path) -> int:
    """Write `model` to `directory` in the form for interchange, replacing what was there as a whole.

    Returns the bytes that the folder takes on disk, everything included.
    Raises ValueError for a model that does not say how it was built, ArtifactError for one
    that holds NaN, RunDirectoryError where `directory` holds something else, OSError where it cannot be written.
    """
    check_finite(model)
    content = content_of(model, copy=False)
    with atomic_folder(directory) as temporary:
        folder.write(content, temporary)
    return folder_bytes(directory)


def load(path: Path | str, *, device: str | torch.device = "cpu", trust: Sequence[str] = ()) -> nn.Module:
    """Read a model in any form; it comes back in evaluation mode, with ordinary parameters.

    Its attribute `preprocess` makes its inputs from raw samples (see `compresskd.artifact.preprocess`), where the
    file says of which data it is: that of a stage's checkpoint does not.

    Args:
        path: a `.ckd` file, a folder with `model.safetensors` and `structure.json`, or a finished run's directory.
        device: where its parameters go.
        trust: packages besides compresskd whose architecture and modules may be built. Of a run directory those
            too that its signature by this user's own key names (see `compresskd.trust`).

    Raises:
        ArtifactError: a file is missing, damaged, of an unknown format, does not fit its structure, or names
            what lies outside compresskd and `trust`.
    """
    return load_with_content(path, device=device, trust=trust)[0]


def load_with_content(
    path: Path | str, *, device: str | torch.device = "cpu", trust: Sequence[str] = ()
) -> tuple[nn.Module, Content]:
    """As `load`, with what the file says: on the CPU its floats are the model's own, and change with it."""
    path = Path(path)
    if (path / RECORD).is_file():
        with refusing(path):
            trust = granted(path, read_record(path), trust)
    content = read(path, trust=trust)
    with refusing(path):
        model = construct.build(content, trust=trust, take=True)
    if content.about:
        model.preprocess = Preprocess(content.about)  # pyright: ignore[reportArgumentType]
    return model.to(device), content


def read(path: Path | str, *, trust: Sequence[str] = ()) -> Content:
    """The content of a model in any form, verified; arguments and errors as `load`'s."""
    path = _of_run(Path(path))
    if path.is_dir():
        return folder.read(path)
    return compact.read_compact(path, trust=trust)


def _of_run(path: Path) -> Path:
    """Where the final model of a run directory is; any other path is itself one of a model."""
    if not (path / RECORD).is_file():
        return path
    with refusing(path):
        record = read_record(path)
    if record.status != FINISHED:
        raise ArtifactError(f"{path} is not finished (it is {record.status}): it has no final model yet")
    if (path / MODEL / folder.STRUCTURE).exists():
        return path / MODEL
    return path / str((record.stage(record.final) or {}).get("checkpoint"))


def folder_bytes(directory: Path) -> int:
    """Bytes of all files of a model's folder."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def bytes_of(model: nn.Module) -> int:
    """Bytes that `save` takes on disk for this model; errors as its."""
    check_finite(model)
    return folder.num_bytes(content_of(model, copy=False))
