"""The file that says where an unfinished stage stands."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compresskd.run import RunDirectoryError, read_checked, write_checked


def write_training(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values; they replace what was there atomically.

    content: `stage`, its name; `seconds` and `wall_seconds` of work on the stage and on the run; `state` of `fit`.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_checked(path, buffer.getvalue())


def read_training(path: Path) -> dict[str, Any] | None:
    """What `write_training` wrote; None where there is no such file. Nothing in it is executed.

    Raises:
        RunDirectoryError: it is damaged, or holds something else.
    """
    try:
        data = read_checked(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises on foreign bytes
        raise _no_training(path) from error
    if not _is_training(content):
        raise _no_training(path)
    return content


def _is_training(content: Any) -> bool:
    if not isinstance(content, dict) or content.keys() != {"stage", "seconds", "wall_seconds", "state"}:
        return False
    seconds = (content["seconds"], content["wall_seconds"])
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in seconds):
        return False
    return isinstance(content["stage"], str) and isinstance(content["state"], dict)


def _no_training(path: Path) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path} is not the state of a training; remove it to repeat the stage from its start"
    )
