"""By what the plans of factorized layers are chosen: by their shapes alone, or by trials on this machine.

A fixed plan is a pure function of shapes and number of threads, so that the same training gives the same bits with an
empty cache as with a full one. A measured plan is the fastest of a few that were tried once on this machine, which
another machine, or this one on another day, may judge otherwise. Where nobody says which, training takes fixed plans
and inference measured ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from compresskd.options import OptionError

FIXED, MEASURED = "fixed", "measured"
SOURCES = (FIXED, MEASURED)

_said: ContextVar[str | None] = ContextVar("compresskd_plans", default=None)
said = _said.get  # bound once: it is asked at each call of a layer


@contextmanager
def plans(source: str) -> Iterator[None]:
    """Within, all plans come from `source`, in training and at inference; inner blocks have the last word.

    It holds for this thread (and asyncio task) alone, as context variables do.

    Raises:
        ValueError: `source` is neither 'fixed' nor 'measured'.
    """
    check_source(source)
    token = _said.set(source)
    try:
        yield
    finally:
        _said.reset(token)


def check_source(source: str) -> None:
    """Raise OptionError where `source` is neither 'fixed' nor 'measured'."""
    if source not in SOURCES:
        raise OptionError("plan", source, ", ".join(SOURCES))


def source_of(*, training: bool) -> str:
    """Where a plan that is needed now comes from."""
    return said() or (FIXED if training else MEASURED)


@contextmanager
def repeatable() -> Iterator[None]:
    """Within, all plans are fixed unless somebody outside has said otherwise. It serves as a decorator too."""
    with plans(said() or FIXED):
        yield
