"""Orders carried out one after the other: here, or by several processes at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from compresskd.cli.endings import outlive_the_reader
from compresskd.cli.trial import Composer, Order, carry_out
from compresskd.cli.workers import KILLED, record_loss
from compresskd.targets.paths import with_here

_PATIENCE = 60.0  # seconds that workers have to save what they are at


class Source(Protocol):
    """Where orders come from, and go back to."""

    def next(self) -> Order | None:
        """Return the next order; None where there is none, at least until another comes back."""

    def judge(self, order: Order, strategy: str, stage: str, epoch: int, value: float) -> bool:
        """Take one epoch; whether the run is to be given up."""
        ...

    def end(self, order: Order, reason: str) -> None:
        """Take an order back; why it failed, or nothing."""

    def say(self, text: str) -> None:
        """Show a line."""


def carry_out_all(source: Source, composer: Composer, workers: int = 1) -> None:
    """Carry out every order of a source, by so many processes at once; by this one where that is one."""
    if workers > 1:
        _by_processes(source, composer, workers)
        return
    with with_here():
        while (order := source.next()) is not None:

            def judge(strategy: str, stage: str, epoch: int, value: float, order: Order = order) -> bool:
                return source.judge(order, strategy, stage, epoch, value)

            source.end(order, carry_out(order, composer, judge, source.say))


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    order: Order | None = None


def _by_processes(source: Source, composer: Composer, count: int) -> None:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    number = int(threads) if threads.isdigit() else max(1, (os.cpu_count() or 1) // count)
    workers: list[_Worker] = []
    try:
        while True:
            while len(_busy(workers)) < count and (order := source.next()) is not None:
                idle = next((each for each in workers if each.order is None), None)
                if idle is None:
                    workers.append(idle := _started(composer, number))
                idle.order = order
                with contextlib.suppress(OSError):  # one that has died is found below
                    idle.connection.send(replace(order, experiment=None))
            if not _busy(workers):
                return
            wait([each.connection for each in _busy(workers)])
            for each in _busy(workers):
                if each.connection.poll() and not _answered(each, source):
                    workers.remove(each)
    finally:
        _stop(workers)


def _busy(workers: list[_Worker]) -> list[_Worker]:
    return [each for each in workers if each.order is not None]


def _answered(worker: _Worker, source: Source) -> bool:
    """Answer one message of a worker; False where it has died: its own run has failed, and the others go on."""
    order = worker.order
    assert order is not None
    try:
        kind, *content = worker.connection.recv()
        if kind == "epoch":
            worker.connection.send(source.judge(order, *content))
        elif kind == "say":
            source.say(*content)
        else:
            worker.order = None
            source.end(order, *content)
    except (EOFError, OSError):
        worker.process.join()
        record_loss(order.directory)
        source.end(order, KILLED)
        return False
    return True


def _started(composer: Composer, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, replace(composer, shared={}), threads), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _stop(workers: list[_Worker]) -> None:
    """End all workers; what they are at is saved where they are given the time."""
    for each in workers:
        if each.order is not None:
            each.process.terminate()
        each.connection.close()
    for each in workers:
        each.process.join(_PATIENCE)
        if each.process.is_alive():
            each.process.kill()


def _work(connection: Connection, composer: Composer, threads: int) -> None:
    """Carry out what comes, until nothing does any more. Ctrl-C in the terminal is the parent's to pass on."""
    import torch

    os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    outlive_the_reader()
    torch.set_num_threads(threads)

    def say(text: str) -> None:
        with _interrupted_where_closed():
            connection.send(("say", text))

    def judge(*epoch: Any) -> bool:
        with _interrupted_where_closed():
            connection.send(("epoch", *epoch))
            return connection.recv()
        return False

    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt), with_here():
        while True:
            order: Order = connection.recv()
            connection.send(("end", carry_out(order, composer, judge, say)))


@contextlib.contextmanager
def _interrupted_where_closed() -> Iterator[None]:
    """The parent that does not listen any more wants the run to be saved."""
    try:
        yield
    except (EOFError, OSError):
        raise KeyboardInterrupt from None


def _end_with_the_parent() -> None:
    """End this process where its parent was killed: the search is continued by another one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
