"""Where a run happened: versions, git revision of the working directory, hardware."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import socket
import subprocess
from importlib import metadata
from typing import Any

import torch

from compresskd.tt.execution.machine import processor
from compresskd.version import __version__

_PACKAGES = (
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "tensorly",
    "safetensors",
    "datasets",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of Python, compresskd and the packages that decide results."""
    found = {"python": platform.python_version(), "compresskd": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> dict[str, Any] | None:
    """Revision of the working directory and whether it has uncommitted changes; None outside a repository."""
    try:
        revision = _git("rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    # a repository that was copied from somebody must not start its file system monitor here
    command = ["git", "-c", "core.fsmonitor=false", "--no-optional-locks", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, device; the host's name only as a hash, enough to tell machines apart."""
    return {
        "cpu": processor(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "hostname_hash": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8],
    }


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep memory that a training step frees, for the next step to use.

    glibc gives large blocks back to the system and asks for them again at every step, which then clears each page:
    7 to 15% of the processor time of training a ResNet-20 on a CPU (batch 128, torch 2.13). Returns whether the
    allocator took the setting; elsewhere than glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # both: setting one alone switches off the other's own adaptation
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
