"""Running means that do not depend on when they are fetched."""

import json
import math

import pytest
import torch

from compresskd.tasks import Batch, Classification
from compresskd.training import LossOutput
from compresskd.training.meter import Meter


def steps(count):
    generator = torch.Generator().manual_seed(1)
    for step in range(count):
        size = 5 if step < count - 1 else 3
        logits = torch.randn(size, 3, generator=generator)
        targets = torch.randint(3, (size,), generator=generator)
        total = torch.rand((), generator=generator, requires_grad=True)
        yield LossOutput(total, {"b": total.detach() * 2, "a": total.detach() * 3}, logits), targets


def batch_of(targets):
    return Batch(torch.zeros(len(targets), 1), targets, torch.arange(len(targets)), view=0)


def filled(rows_per_fetch, count=11):
    meter = Meter(torch.device("cpu"), Classification())
    meter.rows_per_fetch = rows_per_fetch
    for output, targets in steps(count):
        meter.add(output, batch_of(targets), 0.1)
    meter.fetch()
    return meter


def test_means_are_over_samples():
    meter = filled(1)
    sizes = [len(targets) for _, targets in steps(11)]
    losses = [output.total.item() for output, _ in steps(11)]
    correct = sum((output.logits.argmax(1) == targets).sum().item() for output, targets in steps(11))
    assert meter.samples == 53
    assert meter.loss == sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / 53
    assert meter.metrics["accuracy"] == correct / 53
    assert meter.terms == {"b": pytest.approx(2 * meter.loss), "a": pytest.approx(3 * meter.loss)}


@pytest.mark.parametrize("rows_per_fetch", [2, 3, 50])
def test_sums_do_not_depend_on_when_they_are_fetched(rows_per_fetch):
    assert filled(rows_per_fetch).state_dict() == filled(1).state_dict()


def test_state_goes_through_json_and_on():
    saved = json.loads(json.dumps(filled(1).state_dict(), allow_nan=False))
    meter = Meter(torch.device("cpu"), Classification())
    meter.load_state_dict(saved)
    assert meter.state_dict() == filled(1).state_dict()
    json.dumps(Meter(torch.device("cpu"), Classification()).state_dict(), allow_nan=False)


@pytest.mark.parametrize("rows_per_fetch", [1, 4, 50])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_step_is_found_however_late(rows_per_fetch, value):
    meter = Meter(torch.device("cpu"), Classification())
    meter.rows_per_fetch = rows_per_fetch
    for step, (output, targets) in enumerate(steps(9)):
        terms = dict(output.terms)
        if step >= 5:
            terms["a"] = torch.tensor(value)
        meter.add(LossOutput(output.total, terms, output.logits), batch_of(targets), 0.1 * step)
    meter.fetch()
    step, lr, values = meter.first_bad
    assert (step, lr) == (5, 0.5)
    assert math.isfinite(values["loss"])
    assert math.isfinite(values["b"])
    assert not math.isfinite(values["a"])
