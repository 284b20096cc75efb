"""Threads on cores that are shared."""

import os

_TURNS = 20_000  # half a millisecond; 300,000 unless told
_SAID_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_briefly() -> None:
    """Let a thread that waits for work go to sleep soon, unless the user says how it is to wait.

    To be called before torch is imported: GNU's OpenMP, which torch has on Linux, reads it once. Its own choice is to
    turn for milliseconds, which takes the core from whoever else runs there, often the very thread that is waited for.
    """
    if not any(name in os.environ for name in _SAID_BY):
        os.environ["GOMP_SPINCOUNT"] = str(_TURNS)
