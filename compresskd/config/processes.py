"""What a run of several processes asks of its configuration and of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from compresskd.distributed.launch import Place
from compresskd.options import OptionError


def process_faults(config: Mapping[str, Any], device: torch.device | None) -> Iterator[OptionError]:
    """A fault for each value that does not go with the number of processes, by its key."""
    asked, place = config["processes"], Place.of_environment()
    if place is not None and asked not in (1, place.world):
        yield OptionError("processes", asked, f"{place.world}, as torchrun has started, or nothing")
    number = num_processes(config)
    if not isinstance(number, int) or number < 2:
        return
    for prefix in ("", "teacher_fit."):
        train = (config["teacher_fit"] if prefix else config).get("train", {})
        size = train.get("batch_size")
        if isinstance(size, int) and size < number:
            expected = f">= {number}: one sample at least for each of processes={number}"
            yield OptionError(f"{prefix}train.batch_size", size, expected)
        if train.get("compile"):
            yield OptionError(f"{prefix}train.compile", True, f"false with processes={number}")
    yield from _device_faults(device, number if place is None else 1)


def num_processes(config: Mapping[str, Any]) -> int:
    """How many processes work on a run: as many as torchrun has started, else as many as are asked for."""
    place = Place.of_environment()
    return config["processes"] if place is None else place.world


def _device_faults(device: torch.device | None, here: int) -> Iterator[OptionError]:
    """What is wrong with the device of `here` processes that start on this machine, or of one of torchrun's."""
    if device is None or device.type == "cpu":
        return
    if device.type != "cuda":
        yield OptionError("device", str(device), "cpu or cuda with several processes")
    elif device.index is not None:
        yield OptionError("device", str(device), "cuda with several processes: each takes one of its own")
    elif torch.cuda.device_count() < here:
        expected = f"cpu, or processes <= {torch.cuda.device_count()}, the GPUs of this machine"
        yield OptionError("device", "cuda", expected)
