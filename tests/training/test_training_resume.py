"""A training that stops anywhere and goes on ends where one ends that never stopped, bit for bit."""

import copy
import functools
import os
import random
import signal
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresskd.training import LossOutput, NonFiniteLoss, ResumeMismatch
from compresskd.training.interrupt import deferred_interrupt, termination_interrupts
from compresskd.training.schedules import cosine, multistep, one_cycle

EVERY_STEP = 1e-9  # checkpoint_seconds


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.01, fused=True)


RECIPES = {
    "one_cycle, ema, mixup": {"scheduler": one_cycle, "ema": 0.9, "mixup": 0.4},
    "multistep, clip": {"scheduler": multistep, "gradient_clip": 0.5},
    "adamw, cosine": {"scheduler": functools.partial(cosine, warmup_epochs=1), "optimizer": adamw},
    "one_cycle, adamw, patience, channels_last": {
        "scheduler": one_cycle,
        "optimizer": adamw,
        "patience": 1,
        "channels_last": True,
    },
    "bf16": {"precision": "bf16"},
    "the last epoch": {"keep": "last"},
}


@pytest.fixture
def soft_cross_entropy():
    """Takes mixed targets too."""

    def loss(model, batch):
        logits = model(batch.inputs)
        total = F.cross_entropy(logits.float(), batch.targets)
        return LossOutput(total, {"a": total.detach(), "b": 2 * total.detach()}, logits)

    return loss


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_anywhere_equals_uninterrupted(
    name, *, train, make_recipe, soft_cross_entropy, keep, untimed
):
    recipe = make_recipe(**RECIPES[name])
    options = {"recipe": recipe, "loss": soft_cross_entropy}
    model, result = train(**options)
    train(
        **{**options, "recipe": make_recipe(**RECIPES[name], checkpoint_seconds=EVERY_STEP)}, checkpoint=keep
    )
    assert len(keep) == 8 * len(result.history)  # after each of 7 steps, and after validation
    moments = random.Random(name).sample(range(len(keep)), 6)
    for moment in [*moments, 6, len(keep) - 1]:  # 6: all steps of an epoch done, validation not
        again, resumed = train(**options, resume=keep.read(moment))
        assert equal(again.state_dict(), model.state_dict()), moment
        assert untimed(resumed.history) == untimed(result.history), moment
        assert resumed.best_epoch == result.best_epoch


def test_a_chain_of_stops_equals_uninterrupted(train, make_recipe, soft_cross_entropy, keep, untimed):
    recipe = make_recipe(scheduler=one_cycle, ema=0.9, mixup=0.4)
    model, result = train(recipe=recipe, loss=soft_cross_entropy)
    state = None
    for stop_at in (2, 9, 10, 20):

        def interrupt(step, stop_at=stop_at):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(recipe=recipe, loss=soft_cross_entropy, resume=state, checkpoint=keep, after_step=interrupt)
        state = keep.read(-1)
        assert 7 * state["epoch"] + state["step"] == stop_at
    again, resumed = train(recipe=recipe, loss=soft_cross_entropy, resume=state)
    assert equal(again.state_dict(), model.state_dict())
    assert untimed(resumed.history) == untimed(result.history)


def test_state_of_extra_modules_is_resumed(train, make_recipe, cross_entropy, keep):
    def setting():
        torch.manual_seed(0)
        projector = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def loss(model, batch):
            total, terms, logits, _ = cross_entropy(model, batch)
            return LossOutput(total + projector(logits).square().mean(), terms, logits)

        return projector, loss

    projector, loss = setting()
    train(
        loss=loss,
        extra_modules=[projector],
        recipe=make_recipe(checkpoint_seconds=EVERY_STEP),
        checkpoint=keep,
    )
    again, loss = setting()
    train(loss=loss, extra_modules=[again], resume=keep.read(12))
    assert equal(again.state_dict(), projector.state_dict())


def test_resuming_leaves_the_checkpoint_as_it_is(train, make_recipe, keep):
    train(recipe=make_recipe(checkpoint_seconds=EVERY_STEP), checkpoint=keep)
    state = keep.read(4)
    before = copy.deepcopy(state)
    first = train(resume=state)[0]
    second = train(resume=state)[0]
    assert equal(first.state_dict(), second.state_dict())
    buffers = [s["optimizer"]["state"][0]["momentum_buffer"] for s in (state, before)]
    assert torch.equal(*buffers)


def test_ctrl_c_stops_at_a_step_boundary_and_leaves_the_handler(train, keep):
    handler = signal.getsignal(signal.SIGINT)
    calls = []

    def after_step(step):
        calls.append(step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the impatient second press

    with pytest.raises(KeyboardInterrupt):
        train(after_step=after_step, checkpoint=keep)
    assert calls == [1, 2, 3]
    assert keep.read(-1)["step"] == 3
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_in_validation_saves_the_epoch_first(train, keep):
    with pytest.raises(KeyboardInterrupt):
        train(on_epoch=lambda record: os.kill(os.getpid(), signal.SIGINT), checkpoint=keep)
    state = keep.read(-1)
    assert (state["epoch"], state["step"], len(state["history"])) == (1, 0, 1)


def test_the_third_ctrl_c_does_not_wait(train, keep):
    def after_step(step):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(after_step=after_step, checkpoint=keep)
    assert len(keep) == 0


def test_ctrl_c_after_the_last_look_is_not_lost():
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        os.kill(os.getpid(), signal.SIGINT)


def test_a_termination_that_means_ctrl_c_waits_for_the_step_too(train, keep):
    with pytest.raises(KeyboardInterrupt), termination_interrupts():
        train(after_step=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM), checkpoint=keep)
    assert keep.read(-1)["step"] == 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_training_in_a_thread_needs_no_signals(train):
    results = []
    thread = threading.Thread(target=lambda: results.append(train()[1]))
    thread.start()
    thread.join()
    assert len(results[0].history) == 3


@pytest.mark.parametrize(
    ("changes", "seed", "words"),
    [
        ({"epochs": 4}, 3, "epochs: 3 then, 4 now"),
        ({"batch_size": 16}, 3, "batch_size: 32 then, 16 now"),
        ({}, 4, "seed: 3 then, 4 now"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(changes, seed, words, *, train, make_recipe, keep):
    train(checkpoint=keep)
    with pytest.raises(ResumeMismatch, match=words):
        train(recipe=make_recipe(**changes), seed=seed, resume=keep.read(0))


def test_a_checkpoint_of_another_model_is_refused(train, keep):
    train(checkpoint=keep)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ResumeMismatch, match="does not fit this model"):
        train(model=other, resume=keep.read(0))


def test_a_checkpoint_of_another_layout_is_refused(train, keep):
    train(checkpoint=keep)
    with pytest.raises(ResumeMismatch, match="checkpoint layout 99; this release reads 1"):
        train(resume={**keep.read(0), "version": 99})


def test_no_checkpoint_of_a_diverged_model(train, make_recipe, keep):
    with pytest.raises(NonFiniteLoss):
        train(recipe=make_recipe(lr=1e30, checkpoint_seconds=EVERY_STEP), checkpoint=keep)
    for index in range(len(keep)):
        assert all(torch.isfinite(torch.tensor(keep.read(index)["meter"]["sums"])))
