"""What a process does that another one has started, or that torchrun has started beside it: follow the first one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SECONDS = 0.3  # between two looks at the first process


def is_one_of_several() -> bool:
    """Whether the environment may say so; what it says is judged where torch is loaded."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def follows() -> bool:
    """Whether this process is told what to do by the first of several."""
    if "COMPRESSKD_FIRST" in os.environ:  # before torch is loaded, which may outlast the first process
        threading.Thread(
            target=_end_with_parent, args=(int(os.environ["COMPRESSKD_FIRST"]),), daemon=True
        ).start()
    from compresskd.distributed.launch import Place

    place = Place.of_environment()
    return place is not None and place.rank > 0


def follow() -> int:
    """Do as the first process says until it ends, without a word; returns the exit code."""
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # read as torch is loaded: the end of the others is no news
    import torch

    from compresskd.distributed import launch

    place = launch.Place.of_environment()
    assert place is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process gets them too, and decides
        signal.signal(number, signal.SIG_IGN)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():
        torch.set_num_threads(
            int(threads)
        )  # joblib sets MKL_NUM_THREADS too, which for torch comes before it
    return launch.follow(place, _carry_out)


def _end_with_parent(process: int) -> None:
    while os.getppid() == process:
        time.sleep(_SECONDS)
    os._exit(1)


@contextmanager
def leading() -> Iterator[None]:
    """Within, this is the first of the processes of torchrun; at the end the others end too."""
    from compresskd.distributed.launch import met_by_torchrun

    others = met_by_torchrun()
    try:
        yield
    finally:
        if others is not None:
            others.end()


def _carry_out(order: Mapping[str, Any]) -> None:
    sys.path.extend(place for place in order["path"] if place not in sys.path)
    from compresskd.config.recorded import build_recorded
    from compresskd.distributed import alone
    from compresskd.engine.environment import keep_freed_memory
    from compresskd.listeners.console import Reporter
    from compresskd.run import Followed

    keep_freed_memory()
    directory = Path(order["directory"])
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory} is not there for every process; write outputs_dir=DIR that all of them see"
        )
    with alone():  # trials of trainings, which the first process has behind it
        experiment = build_recorded(order["config"], order["overrides"], trust=order["trust"])
    experiment.run(Followed(directory), Reporter())
