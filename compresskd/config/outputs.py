"""Whether the folder that runs go to can be written, found out without leaving anything there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from compresskd.config.faults import Fault
from compresskd.run import Foreign, check_ours

_NAMED = ("hydra.run.dir", "hydra.sweep.dir")


def output_faults(overrides: Sequence[str], outputs_dir: str) -> Iterator[Fault]:
    """A fault for each folder that cannot be written, or cannot be made where it is to be."""
    pairs = [line.partition("=")[::2] for line in overrides]
    named = {key: value.strip("'\"") for key, value in pairs if key in _NAMED and "${" not in value}
    for key, folder in (named or {"outputs_dir": outputs_dir}).items():
        if not folder:
            yield Fault(key, f"came nothing; write {key}=DIR")
            continue
        path = Path(folder).absolute()
        existing = next(p for p in (path, *path.parents) if p.exists())
        reason = _refusal(existing)
        if reason:
            yield Fault(key, f"came {folder}, which cannot be written ({reason}); write {key}=DIR")
        elif key == "hydra.run.dir":  # ahead of Hydra, which may write its own files there
            try:
                check_ours(path)
            except Foreign as error:
                yield Fault(key, str(error))


def _refusal(folder: Path) -> str:
    """Why nothing can be written in `folder`; empty where it can."""
    if not folder.is_dir():
        return f"{folder} is a file"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
