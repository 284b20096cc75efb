"""Measurements that are made inside of somebody's call, and leave no trace there."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def undisturbed(*, grad: bool) -> Iterator[None]:
    """No inference mode, autocast or dispatch modes (such as those that count operations) of the caller."""
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def least_seconds(runs: Sequence[Callable[[], object]], device: torch.device, rounds: int) -> list[float]:
    """Seconds of each: the least of interleaved runs, the first of which are for warming up, too."""
    least = [math.inf] * len(runs)
    # where one thread does all the work, its own time says the same on a busy machine
    alone = device.type == "cpu" and torch.get_num_threads() == 1 and sys.platform == "linux"
    clock = time.thread_time if alone else time.perf_counter
    for _ in range(rounds + 1):
        for k, run in enumerate(runs):
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            least[k] = min(least[k], clock() - start)
    return least
