"""A recipe tells all that is wrong with it, by the names of the configuration."""

import functools
from dataclasses import replace

import pytest
import torch

from compresskd.training.schedules import cosine


def sgd(**options):
    return functools.partial(torch.optim.SGD, **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": -1}, "epochs: got -1, expected >= 0"),
        ({"epochs": 2.5}, r"epochs: got 2\.5, expected a whole number"),
        ({"epochs": True}, "epochs: got true, expected a whole number"),
        ({"batch_size": 0}, "batch_size: got 0, expected >= 1"),
        (
            {"evaluation_batch_size": -3},
            "evaluation_batch_size: got -3, expected >= 1",
        ),
        ({"gradient_clip": 0.0}, r"gradient_clip: got 0\.0, expected >= 1e-06"),
        ({"gradient_clip": float("nan")}, "gradient_clip: got nan, expected a finite number"),
        ({"mixup": -0.1}, r"mixup: got -0\.1, expected > 0"),
        ({"ema": 1.0}, r"ema: got 1\.0, expected < 1"),
        ({"patience": 0}, "patience: got 0, expected >= 1"),
        ({"keep": "first"}, "keep: got 'first', expected best, last"),
        ({"keep": "last", "patience": 2}, "patience: got 2, expected null with keep=last"),
        ({"precision": "fp8"}, "precision: got 'fp8', expected fp32, bf16, fp16"),
        ({"precision": 16}, "precision: got 16, expected a string"),
        ({"compile": "yes"}, "compile: got 'yes', expected true or false"),
        ({"channels_last": 1}, "channels_last: got 1, expected true or false"),
        ({"checkpoint_seconds": 0}, "checkpoint_seconds: got 0, expected > 0"),
        ({"optimizer": "sgd"}, "optimizer: got 'sgd', expected"),
        ({"optimizer": sgd(lr=0)}, r"optimizer\.lr: got 0, expected > 0"),
        ({"optimizer": sgd(lr="fast")}, r"optimizer\.lr: got 'fast', expected a number"),
        ({"optimizer": sgd(lr=1.0, momentum=1.0)}, r"optimizer\.momentum: got 1\.0, expected < 1"),
        (
            {"optimizer": sgd(lr=1.0, weight_decay=-1.0)},
            r"optimizer\.weight_decay: got -1\.0, expected >= 0",
        ),
        (
            {"optimizer": sgd(lr=1.0, nesterov=True)},
            r"optimizer\.nesterov: got true, expected",
        ),
        ({"scheduler": None}, "scheduler: got null, expected"),
        (
            {"scheduler": functools.partial(cosine, warmup_epochs=3)},
            r"scheduler\.warmup_epochs: got 3, expected",
        ),
    ],
)
def test_what_came_and_what_is_allowed(changes, words, make_recipe):
    with pytest.raises(ValueError, match=words):
        make_recipe(**changes)


def test_all_faults_are_told_at_once(make_recipe):
    with pytest.raises(ValueError, match="epochs") as caught:
        make_recipe(epochs=-1, batch_size=0, ema=2.0, optimizer=sgd(lr=-1.0, weight_decay=-1.0))
    keys = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert keys == ["epochs", "batch_size", "ema", "optimizer.lr", "optimizer.weight_decay"]


def test_a_stage_may_change_a_value_and_is_checked_again(make_recipe):
    recipe = make_recipe(epochs=0, scheduler=functools.partial(cosine, warmup_epochs=1))
    assert replace(recipe, epochs=2).epochs == 2
    with pytest.raises(ValueError, match=r"scheduler\.warmup_epochs: got 1, expected"):
        replace(recipe, epochs=1)
