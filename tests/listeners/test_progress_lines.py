"""What is said of long computations where there is no terminal with bars."""

import logging

import pytest

from compresskd import progress
from compresskd.listeners import console
from compresskd.listeners.console import Reporter
from compresskd.training import StepProgress


@pytest.fixture
def clock(monkeypatch):
    """Seconds, by which the console waits."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("compresskd"), "propagate", True)
    caplog.set_level(logging.INFO, "compresskd")
    return lambda: [record.getMessage() for record in caplog.records]


def test_inside_an_epoch_a_line_a_minute_says_where_it_stands(clock, lines):
    reporter = Reporter(None, "teacher: ")
    for seconds, step in ((1, 10), (59, 500), (61, 510), (80, 700), (122, 1500)):
        clock[0] = seconds
        reporter.step(StepProgress(0, 3, step, 2000, 0.25, {"accuracy": 0.5}, 1096.4))
    expected = "teacher: epoch 1/3, {} of 2,000 steps  loss 0.2500  accuracy 50.00%  1,096 samples/s"
    assert lines() == [expected.format(step) for step in ("510", "1,500")]


def test_a_line_of_another_kind_counts(clock, lines):
    reporter = Reporter()
    clock[0] = 50
    reporter.note("calibration, batches: 3 of 4")
    clock[0] = 70
    reporter.step(StepProgress(1, 31, 40, 60, 0.25, {}, 0.125, "block"))
    clock[0] = 111
    reporter.step(StepProgress(1, 31, 50, 60, 0.25, {}, 0.125, "block"))
    assert lines() == [
        "calibration, batches: 3 of 4",
        "block 2/31, 50 of 60 steps  loss 0.2500  0.12 samples/s",
    ]


def test_items_are_told_by_and_by(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for item in progress.told("abcdef", 6, "layers", said.append):
        now[0] += 15 if item != "c" else 1
    assert said == ["layers: 2 of 6", "layers: 5 of 6"]
