"""Ctrl-C that waits for a moment at which the state is whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

PATIENCE = 3  # presses of Ctrl-C after which it no longer waits


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed since the block was entered."""

    presses: int = 0

    @property
    def pending(self) -> bool:
        """The loop is to save and stop at its next step boundary."""
        return self.presses > 0

    def press(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: note it; raise at the third press, for the user whose step does not end."""
        self.presses += 1
        if self.presses >= PATIENCE:
            raise KeyboardInterrupt


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Note Ctrl-C instead of raising wherever it happens to hit, such as in the middle of an optimizer step.

    Whoever is inside asks `pending` at its step boundaries; at the latest it is raised where the block ends. A
    SIGTERM is noted likewise where it means the same (`termination_interrupts`). Outside the main thread, where
    Python delivers no signals, and where Ctrl-C is ignored (a background job of a shell), nothing is changed.
    """
    interrupt = Interrupt()
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if _in_main_thread() else {}
    noted = {s: handler for s, handler in previous.items() if _interrupts(s, handler)}
    for number in noted:
        signal.signal(number, interrupt.press)
    try:
        yield interrupt
    finally:
        for number, handler in noted.items():
            signal.signal(number, handler)
    if interrupt.pending:  # pressed after the last time that anybody asked
        raise KeyboardInterrupt


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM, by which a cluster ends a job, raise KeyboardInterrupt as Ctrl-C does.

    Where somebody else handles it already, and outside the main thread, nothing is changed.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupts(number: int, handler: object) -> bool:
    if number == signal.SIGINT:
        return handler not in (signal.SIG_IGN, None)
    return handler is signal.default_int_handler
