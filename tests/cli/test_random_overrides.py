"""Random command lines: each is refused with one message and exit code 2, or runs to its end."""

import functools
import signal
from contextlib import contextmanager

import pytest
from hostile import count
from random_overrides import command, keys_of

from compresskd.cli import jobs
from compresskd.config import schema

NUM_CHECKED, NUM_RUN, LONGEST = count(100, 500), count(6, 20), 60  # seconds of the processor
# What only training can tell; a run that ends so says what to write.
TOLD_BY_TRAINING = ("no layer gets smaller", "no smaller model loses so little", "the loss is not finite")


@contextmanager
def time_limit(seconds):
    """Of the processor: how long a command waits for it is the machine's affair."""

    def stop(*_):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def known_keys():
    """The keys of a few choices, composed once and not for each command."""
    schema.register()
    return functools.cache(keys_of)


def outcome_of(run_cli, arguments):
    with time_limit(LONGEST):
        outcome = run_cli(*arguments)
    assert "Traceback" not in outcome.out + outcome.err, arguments
    return outcome


@pytest.mark.slow
def test_a_random_command_is_checked_or_refused(run_cli, known_keys, monkeypatch):
    monkeypatch.setattr(jobs, "_run_by_hydra", lambda *_: 0)
    monkeypatch.setattr(jobs, "_end_sweep", lambda *_: 0)
    counts = {0: 0, 2: 0}
    for seed in range(NUM_CHECKED):
        arguments = command(seed, known_keys)
        outcome = outcome_of(run_cli, arguments)
        assert outcome.status in counts, (seed, arguments, outcome.err)
        assert outcome.left == [], (seed, arguments)
        if outcome.status == 2:
            assert outcome.err.startswith("compresskd: "), (seed, arguments)
            assert ": " in outcome.err.splitlines()[-1], (seed, arguments)
        counts[outcome.status] += 1
    assert min(counts.values()) > NUM_CHECKED / 10  # both halves are tried


@pytest.mark.slow
def test_a_random_command_that_is_accepted_runs_to_its_end(run_cli, known_keys):
    finished = 0
    for seed in range(10_000, 100_000):
        arguments = command(seed, known_keys)
        if "-m" in arguments:
            continue
        outcome = outcome_of(run_cli, arguments)
        if outcome.status == 2:
            continue
        told = any(words in outcome.err for words in TOLD_BY_TRAINING)
        assert outcome.status == 0 or told, (seed, arguments, outcome.err)
        finished += outcome.status == 0
        if finished == NUM_RUN:
            return
