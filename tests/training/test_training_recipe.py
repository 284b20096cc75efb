"""A recipe tells all that is wrong with it, by the names of the configuration."""

import functools
from dataclasses import replace

import pytest
import torch
from refusals import says

from compresskd.training.schedules import cosine


def sgd(**options):
    return functools.partial(torch.optim.SGD, **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": -1}, says("epochs", "-1", "0")),
        ({"epochs": 2.5}, says("epochs", "2.5", "0")),
        ({"epochs": True}, says("epochs", "True", "0")),
        ({"batch_size": 0}, says("batch_size", "0", "1")),
        (
            {"evaluation_batch_size": -3},
            says("evaluation_batch_size", "-3", "1"),
        ),
        ({"gradient_clip": 0.0}, says("gradient_clip", "0.0", "null", "1e-6")),
        ({"gradient_clip": float("nan")}, says("gradient_clip", "nan", "null", "1e-6")),
        ({"mixup": -0.1}, says("mixup", "-0.1", "null", "0")),
        ({"ema": 1.0}, says("ema", "1.0", "null", "0", "1", "0.999 is usual")),
        ({"patience": 0}, says("patience", "0", "null", "1")),
        ({"precision": "fp8"}, says("precision", "fp8", "fp32", "bf16", "fp16")),
        ({"precision": 16}, says("precision", "16", "fp32", "bf16", "fp16")),
        ({"compile": "yes"}, says("compile", "yes", "true", "false")),
        ({"channels_last": 1}, says("channels_last", "1", "true", "false")),
        ({"checkpoint_seconds": 0}, says("checkpoint_seconds", "0", "seconds")),
        ({"optimizer": "sgd"}, says("optimizer", "sgd", "factory")),
        ({"optimizer": sgd(lr=0)}, says("lr", "0")),
        ({"optimizer": sgd(lr="fast")}, says("lr", "fast", "0")),
        ({"optimizer": sgd(lr=1.0, momentum=1.0)}, says("momentum", "1.0", "0", "1")),
        (
            {"optimizer": sgd(lr=1.0, weight_decay=-1.0)},
            says("weight_decay", "-1.0", "0"),
        ),
        (
            {"optimizer": sgd(lr=1.0, nesterov=True)},
            says("nesterov", "true", "optimizer.momentum", "0"),
        ),
        ({"scheduler": None}, says("scheduler", "None", "factory")),
        (
            {"scheduler": functools.partial(cosine, warmup_epochs=3)},
            says("warmup_epochs", "3", "0"),
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
    with pytest.raises(ValueError, match=says("warmup_epochs", "1")):
        replace(recipe, epochs=1)
