"""Rates at given steps against their formulas."""

import functools
import math

import pytest
import torch
from torch import nn

from compresskd.options import OptionError
from compresskd.training.schedules import constant, cosine, multistep, one_cycle

TOTAL, PER_EPOCH = 40, 4


def rates(schedule, optimizer=None, total=TOTAL, per_epoch=PER_EPOCH):
    optimizer = optimizer or torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = schedule(optimizer, total_steps=total, steps_per_epoch=per_epoch)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant():
    assert rates(constant) == [0.2] * TOTAL


def test_cosine():
    expected = [0.2 * 0.5 * (1 + math.cos(math.pi * step / TOTAL)) for step in range(TOTAL)]
    assert rates(cosine) == pytest.approx(expected, rel=1e-12)
    floor = rates(functools.partial(cosine, final_fraction=0.1))
    assert floor == pytest.approx([0.02 + 0.9 * rate for rate in expected], rel=1e-12)


def test_cosine_equals_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL)
    expected = []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(cosine) == pytest.approx(expected, rel=1e-9)


def test_multistep():
    seen = rates(functools.partial(multistep, milestones=[0.5, 0.75], gamma=0.1))
    assert seen == pytest.approx([0.2] * 20 + [0.02] * 10 + [0.002] * 10, rel=1e-12)


@pytest.mark.parametrize("schedule", [constant, cosine, multistep])
def test_warm_up_rises_in_equal_steps(schedule):
    seen = rates(functools.partial(schedule, warmup_epochs=2.5))
    assert seen[:10] == pytest.approx([0.02 * step for step in range(1, 11)], rel=1e-12)
    assert seen[10] == pytest.approx(0.2, rel=1e-12)
    assert max(seen) <= 0.2 + 1e-12


def test_one_cycle_rises_falls_and_turns_momentum():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    seen = rates(one_cycle, optimizer)
    assert seen[0] == pytest.approx(0.2 / 25)
    assert max(seen) == seen[11] == pytest.approx(0.2)
    assert seen[-1] == pytest.approx(0.2 / 25 / 1e4)
    scheduler = one_cycle(optimizer, total_steps=TOTAL, steps_per_epoch=PER_EPOCH)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)
    assert type(scheduler).__name__ == "OneCycleLR"


def test_one_cycle_gives_no_momentum_to_who_has_none():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    rates(one_cycle, optimizer)
    assert optimizer.param_groups[0]["momentum"] == 0


@pytest.mark.parametrize("total", [1, 2, 3, 4, 10])
def test_one_cycle_of_few_steps(total):
    assert all(0 < rate <= 0.2 + 1e-12 for rate in rates(one_cycle, total=total, per_epoch=1))
    assert (
        len(rates(functools.partial(one_cycle, pct_start=1 / total * 0.999999), total=total, per_epoch=1))
        == total
    )


def test_each_group_keeps_its_own_rate():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.2, 0.02)]
    for schedule in (cosine, one_cycle):
        optimizer = torch.optim.SGD([dict(group) for group in groups], lr=1.0, momentum=0.9)
        rates(schedule, optimizer, total=21)
        first, second = optimizer.param_groups
        assert first["lr"] == pytest.approx(10 * second["lr"])


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (
            functools.partial(cosine, warmup_epochs=10),
            "warmup_epochs: got 10, expected",
        ),
        (functools.partial(constant, warmup_epochs=-1), "warmup_epochs: got -1, expected >= 0"),
        (
            functools.partial(cosine, final_fraction=1.5),
            r"final_fraction: got 1\.5, expected <= 1",
        ),
        (functools.partial(multistep, milestones=[0.5, 150]), r"milestones\[1\]: got 150, expected < 1"),
        (
            functools.partial(multistep, gamma=0.0),
            r"gamma: got 0\.0, expected > 0",
        ),
        (
            functools.partial(one_cycle, pct_start=1.0),
            r"pct_start: got 1\.0, expected < 1",
        ),
    ],
)
def test_values_that_cannot_be(schedule, words):
    with pytest.raises(ValueError, match=words):
        rates(schedule)


@pytest.mark.parametrize("schedule", [constant, cosine, multistep])
def test_a_warm_up_is_of_epochs_of_updates_or_of_a_fraction(schedule):
    def rates(**options):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        made = schedule(optimizer, 40, 10, **options)
        found = []
        for _ in range(40):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            made.step()
        return found

    by_epochs = rates(warmup_epochs=0.5)
    assert rates(warmup_steps=5) == rates(warmup_fraction=0.125) == by_epochs
    assert by_epochs[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for options, field in (
        ({"warmup_steps": 40}, "warmup_steps"),
        ({"warmup_fraction": 1.0}, "warmup_fraction"),
        ({"warmup_steps": 3, "warmup_epochs": 1.0}, "warmup_steps"),
    ):
        with pytest.raises(OptionError, match=field):
            rates(**options)
