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

    Whoever is inside asks `pending` at its step boundaries. Outside the main thread, where Python delivers no
    signals, and where Ctrl-C is ignored (a background job of a shell), nothing is changed.
    """
    interrupt = Interrupt()
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or previous in (signal.SIG_IGN, None):
        yield interrupt
        return
    signal.signal(signal.SIGINT, interrupt.press)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
