"""Updates: several batches to one, a number of them in place of epochs, validation between them."""

import pytest
import torch
from torch import nn

from compresskd.training import evaluate
from compresskd.training.schedules import cosine


def linear():
    """Without batch statistics, so that a batch may be cut without a change of its gradient."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def equal(a, b, tolerance=0.0):
    return all(
        torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in zip(a.values(), b.values(), strict=True)
    )


def test_accumulated_batches_make_the_update_of_one_large_batch(train, make_recipe):
    whole, _ = train(model=linear(), recipe=make_recipe(batch_size=64))
    cut, result = train(model=linear(), recipe=make_recipe(batch_size=16, gradient_accumulation=4))
    # 200 samples: the last batch of 8 (16, 16, ...) counts by its rows
    assert equal(whole.state_dict(), cut.state_dict(), 1e-6)
    assert result.history[-1].updates == 3 * 4


def test_max_steps_wins_over_epochs(train, make_recipe):
    steps = []
    _, result = train(recipe=make_recipe(epochs=1, max_steps=17), after_step=steps.append)
    assert steps == list(range(1, 18))
    assert [record.updates for record in result.history] == [7, 14, 17]
    _, fewer = train(recipe=make_recipe(epochs=9, max_steps=3))
    assert [record.updates for record in fewer.history] == [3]


def test_the_schedule_is_that_of_all_updates(train, make_recipe):
    _, result = train(recipe=make_recipe(epochs=1, max_steps=14, scheduler=cosine))
    assert result.history[-1].lr == pytest.approx(result.history[0].lr * 0.0, abs=2e-3)
    # a cosine from 0.05, after half of the updates
    assert result.history[0].lr == pytest.approx(0.0306, abs=1e-3)


def test_validation_comes_between_updates(train, make_recipe, blobs):
    model, result = train(recipe=make_recipe(epochs=2, validate_every=4))
    assert [record.updates for record in result.history] == [4, 8, 12, 14]
    assert [record.epoch for record in result.history] == [0, 1, 2, 3]
    assert evaluate(model, blobs.validation, batch_size=64).values == pytest.approx(result.validation)
    assert result.best_epoch in range(4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"validate_every": 4},
        {"max_steps": 11},
        {"gradient_accumulation": 3},
        {"gradient_accumulation": 2, "max_steps": 5, "validate_every": 2},
    ],
    ids="+".join,
)
def test_resumed_anywhere_equals_uninterrupted(options, train, make_recipe, keep, untimed):
    model, result = train(recipe=make_recipe(**options))
    train(recipe=make_recipe(**options, checkpoint_seconds=1e-9), checkpoint=keep)
    assert len(keep) > len(result.history)
    for moment in range(len(keep)):
        again, resumed = train(recipe=make_recipe(**options), resume=keep.read(moment))
        assert equal(again.state_dict(), model.state_dict()), moment
        assert untimed(resumed.history) == untimed(result.history), moment


def test_a_model_that_cannot_compute_activations_again_is_told(train, make_recipe):
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        train(recipe=make_recipe(gradient_checkpointing=True))
