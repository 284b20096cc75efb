"""Measurements that are made inside of somebody's call, and leave no trace there."""

from collections.abc import Iterator
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
