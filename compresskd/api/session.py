"""Where a stage of a run is called outside of a run: its context, for as long as it works."""

from __future__ import annotations

import copy
import functools
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from compresskd.data import Data
from compresskd.engine.events import log
from compresskd.engine.strategy import Checked, Context, Stage, State
from compresskd.listeners.console import Reporter
from compresskd.run import Record, open_run
from compresskd.training import EpochRecord, Recipe

OnEpoch = Callable[[EpochRecord], object]


class _Listener(Reporter):
    """Tells the caller of every epoch."""

    def __init__(self, on_epoch: OnEpoch | None):
        super().__init__()
        self._on_epoch = on_epoch

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """After each epoch."""
        super().epoch(epoch, epochs)
        if self._on_epoch is not None:
            self._on_epoch(epoch)


@contextmanager
def session(
    data: Data,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    reference: nn.Module,
    on_epoch: OnEpoch | None,
) -> Iterator[Context]:
    """A context whose run lies in a folder that is removed at the end; torch's generators are left as they were."""
    generators = [device] if device.type == "cuda" else []
    place = tempfile.TemporaryDirectory(prefix="compresskd-")
    with place as folder, torch.random.fork_rng(generators), _told_in_a_notebook():
        run = open_run(Path(folder, "run"))
        try:
            run.start(Record(strategy="notebook", config={}, overrides=[], seed=seed))
            anew = functools.partial(copy.deepcopy, reference)
            yield Context(data.to(device), run, recipe, seed, device, _Listener(on_epoch), anew)
        finally:
            run.close()


@contextmanager
def _told_in_a_notebook() -> Iterator[None]:
    """Show what the log says, where a person waits in a notebook and nobody has said what is shown."""
    kernel = "ipykernel.zmqshell" in sys.modules
    if not kernel or log.handlers or logging.getLogger().handlers:
        yield
        return
    handler, level = logging.StreamHandler(sys.stdout), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def carry_out(name: str, stage: Stage, state: State, context: Context) -> State:
    """Check a stage, then call it; what it left as it was is told as a warning of the log `compresskd`.

    Raises:
        ValueError: the stage does not fit the models.
        NothingCompressed: no layer gets smaller.
    """
    if isinstance(stage, Checked):
        stage.check(state, next(iter(context.data.validation.batches(2))).inputs)
    context.begin(name)
    state = stage(state, context)
    for layer, reason in context.details.get("skipped", {}).items():
        log.warning("%s: %s left as it was (%s)", name, layer, reason)
    context.forget_training()
    return state
