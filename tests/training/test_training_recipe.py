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
        ({"epochs": -1}, "epochs: came -1; allowed: an integer, 0 or more"),
        ({"epochs": 2.5}, "epochs: came 2.5; allowed: an integer, 0 or more"),
        ({"epochs": True}, "epochs: came True; allowed: an integer, 0 or more"),
        ({"batch_size": 0}, "train.batch_size: came 0; allowed: an integer, 1 or more"),
        (
            {"evaluation_batch_size": -3},
            "train.evaluation_batch_size: came -3; allowed: an integer, 1 or more",
        ),
        ({"gradient_clip": 0.0}, "train.gradient_clip: came 0.0; allowed: null, or 1e-6 or more"),
        ({"gradient_clip": float("nan")}, "train.gradient_clip: came nan; allowed: null, or 1e-6 or more"),
        ({"mixup": -0.1}, "train.mixup: came -0.1; allowed: null, or greater than 0"),
        ({"ema": 1.0}, r"train.ema: came 1.0; allowed: null, or between 0 and 1 \(0.999 is usual\)"),
        ({"patience": 0}, "train.patience: came 0; allowed: null, or an integer, 1 or more"),
        ({"precision": "fp8"}, "precision: came 'fp8'; allowed: fp32, bf16, fp16"),
        ({"precision": 16}, "precision: came 16; allowed: fp32, bf16, fp16"),
        ({"compile": "yes"}, "train.compile: came 'yes'; allowed: true, false"),
        ({"channels_last": 1}, "train.channels_last: came 1; allowed: true, false"),
        ({"checkpoint_seconds": 0}, "train.checkpoint_seconds: came 0; allowed: seconds, greater than 0"),
        ({"optimizer": "sgd"}, "optimizer: came 'sgd'; allowed: a factory"),
        ({"optimizer": sgd(lr=0)}, "optimizer.lr: came 0; allowed: a number greater than 0"),
        ({"optimizer": sgd(lr="fast")}, "optimizer.lr: came 'fast'; allowed: a number greater than 0"),
        ({"optimizer": sgd(lr=1.0, momentum=1.0)}, "optimizer.momentum: came 1.0; allowed: 0 to below 1"),
        (
            {"optimizer": sgd(lr=1.0, weight_decay=-1.0)},
            "optimizer.weight_decay: came -1.0; allowed: 0 or more",
        ),
        (
            {"optimizer": sgd(lr=1.0, nesterov=True)},
            "optimizer.nesterov: came true with optimizer.momentum 0",
        ),
        ({"scheduler": None}, "scheduler: came None; allowed: a factory"),
        (
            {"scheduler": functools.partial(cosine, warmup_epochs=3)},
            "scheduler.warmup_epochs: came 3; allowed: 0 or more, and less than the 3 epochs of this training",
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
    assert keys == ["epochs", "train.batch_size", "train.ema", "optimizer.lr", "optimizer.weight_decay"]


def test_a_stage_may_change_a_value_and_is_checked_again(make_recipe):
    recipe = make_recipe(epochs=0, scheduler=functools.partial(cosine, warmup_epochs=1))
    assert replace(recipe, epochs=2).epochs == 2
    with pytest.raises(ValueError, match=r"scheduler\.warmup_epochs: came 1"):
        replace(recipe, epochs=1)
