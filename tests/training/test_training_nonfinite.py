"""A loss that is no number stops the training and says where and why."""

import pickle
from dataclasses import replace

import pytest
import torch

from compresskd.training import LossOutput, NonFiniteLoss, evaluate


@pytest.fixture
def bad_after(cross_entropy):
    """Cross-entropy with a second term that turns to NaN after so many steps."""

    def make(step):
        calls = iter(range(10_000))

        def loss(model, batch):
            total, terms, logits, _ = cross_entropy(model, batch)
            extra = torch.tensor(float("nan") if next(calls) >= step else 0.5)
            return LossOutput(total + extra, {**terms, "extra": extra}, logits)

        return loss

    return make


@pytest.mark.parametrize("step", [0, 1, 6, 7, 20])
def test_epoch_step_rate_and_term_are_told(step, train, bad_after):
    with pytest.raises(NonFiniteLoss) as caught:
        train(loss=bad_after(step))
    error = caught.value
    assert (error.epoch, error.step, error.lr) == (step // 7, step % 7, 0.05)
    message = str(error)
    assert f"(first in extra): epoch {step // 7}, step {step % 7} " in message
    assert "extra = nan" in message
    assert ("No update had been made yet" in message) == (step == 0)


def test_a_rate_too_high_is_named_as_the_cause(train, make_recipe):
    with pytest.raises(
        NonFiniteLoss, match=r"learning rate is too high: write a smaller optimizer\.lr, set train"
    ):
        train(recipe=make_recipe(lr=1e30))
    with pytest.raises(NonFiniteLoss, match=r"smaller optimizer\.lr, or warm up"):
        train(recipe=make_recipe(lr=1e38, gradient_clip=1e30))


def test_validation_is_looked_at_too(train, monkeypatch):
    def broken(*args, **kwargs):
        return replace(evaluate(*args, **kwargs), values={"accuracy": 0.5, "loss": float("inf")})

    monkeypatch.setattr("compresskd.training.loop.evaluate", broken)
    with pytest.raises(NonFiniteLoss, match=r"epoch 0, on validation .* validation_loss = inf") as caught:
        train()
    assert caught.value.step is None


def test_the_error_survives_a_worker_process(train, bad_after):
    with pytest.raises(NonFiniteLoss) as caught:
        train(loss=bad_after(2))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.values.keys() == {"loss", "cross_entropy", "extra"}
