"""The loop against a loop written out by hand, and what it promises about epochs, hooks and seeds."""

import functools
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from refusals import says
from torch import nn

from compresskd.training import EpochRecord, LossOutput, evaluate
from compresskd.training.schedules import cosine


def by_hand(model, data, *, epochs, seed, clip):
    """SGD with momentum, cosine and clipping, in the order in which `fit` promises to do things."""
    torch.manual_seed(seed)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3)
    steps, losses = 0, []
    for epoch in range(epochs):
        model.train()
        for batch in data.train.batches(32, epoch=epoch, seed=seed):
            lr = 0.05 * 0.5 * (1 + math.cos(math.pi * steps / (epochs * 7)))
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = F.cross_entropy(model(batch.inputs), batch.targets)
            loss.backward()
            nn.utils.clip_grad_norm_(decay + plain, clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item() * len(batch.targets))
            steps += 1
    return sum(losses[-7:]) / 200


def test_equals_a_loop_written_by_hand_bit_for_bit(train, make_model, make_recipe, blobs):
    last = {}
    recipe = make_recipe(epochs=3, scheduler=cosine, gradient_clip=0.5, channels_last=False)
    _, result = train(
        recipe=recipe, checkpoint=lambda s: last.update({k: v.clone() for k, v in s["model"].items()})
    )
    reference = make_model()
    last_loss = by_hand(reference, blobs, epochs=3, seed=3, clip=0.5)
    for name, value in reference.state_dict().items():
        assert torch.equal(last[name], value), name
    assert result.history[-1].train["loss"] == last_loss


def test_history_holds_what_was_measured(train, blobs):
    model, result = train()
    assert [record.epoch for record in result.history] == [0, 1, 2]
    best = result.history[result.best_epoch]
    scores = evaluate(model, blobs.validation, batch_size=7)
    assert best.validation["accuracy"] == scores.accuracy == result.validation["accuracy"]
    assert best.validation["loss"] == pytest.approx(scores.loss, rel=1e-6)
    assert best.terms == {"cross_entropy": pytest.approx(best.train["loss"], rel=1e-12)}
    assert result.seconds == sum(record.seconds for record in result.history) > 0
    assert all(record.lr == 0.05 and record.samples_per_second > 0 for record in result.history)


def test_the_same_seed_gives_the_same_history_and_another_does_not(train, untimed):
    histories = [untimed(train(seed=seed)[1].history) for seed in (5, 5, 6)]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_the_generator_of_the_caller_is_left_alone(train, make_model):
    model = make_model()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train(model=model)
    assert torch.equal(torch.rand(3), expected)


def test_the_best_epoch_is_restored_and_ties_go_to_the_lower_loss(train, make_recipe, monkeypatch):
    scripted = iter([(0.5, 1.0), (0.8, 0.9), (0.8, 0.7), (0.8, 0.7), (0.6, 0.1)])

    def scripted_scores(*args, **kwargs):
        accuracy, loss = next(scripted)
        return replace(evaluate(*args, **kwargs), values={"accuracy": accuracy, "loss": loss})

    monkeypatch.setattr("compresskd.training.loop.evaluate", scripted_scores)
    weights = []
    model, result = train(
        recipe=make_recipe(epochs=5),
        checkpoint=lambda s: weights.append({k: v.clone() for k, v in s["model"].items()}),
    )
    assert (result.best_epoch, result.validation["accuracy"], result.validation["loss"]) == (2, 0.8, 0.7)
    assert all(torch.equal(value, weights[2][name]) for name, value in model.state_dict().items())


def test_the_last_epoch_is_kept_where_asked_for(train, make_recipe, monkeypatch):
    scripted = iter([0.5, 0.8, 0.7])

    def scripted_scores(*args, **kwargs):
        return replace(evaluate(*args, **kwargs), values={"accuracy": next(scripted), "loss": 1.0})

    monkeypatch.setattr("compresskd.training.loop.evaluate", scripted_scores)
    weights = []
    model, result = train(
        recipe=make_recipe(epochs=3, keep="last"),
        checkpoint=lambda s: weights.append({k: v.clone() for k, v in s["model"].items()}),
    )
    assert (result.best_epoch, result.validation["accuracy"]) == (2, 0.7)
    assert all(torch.equal(value, weights[-1][name]) for name, value in model.state_dict().items())
    assert not all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())


def test_patience_counts_epochs_without_a_better_one(train, make_recipe, monkeypatch):
    scripted = iter([0.5, 0.8, 0.7, 0.9, 0.9, 0.8, 1.0])

    def scripted_scores(*args, **kwargs):
        return replace(evaluate(*args, **kwargs), values={"accuracy": next(scripted), "loss": 1.0})

    monkeypatch.setattr("compresskd.training.loop.evaluate", scripted_scores)
    _, result = train(recipe=make_recipe(epochs=7, patience=2))
    assert len(result.history) == 6
    assert result.best_epoch == 3
    assert result.stopped_early


def test_no_epochs_returns_the_model_as_it_is_evaluated(train, make_model, make_recipe, blobs):
    model, result = train(recipe=make_recipe(epochs=0))
    untouched = make_model().state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())
    assert result.history == ()
    assert result.best_epoch is None
    assert result.validation["accuracy"] == evaluate(model, blobs.validation, batch_size=512).accuracy


def test_gradients_are_clipped_to_the_norm(train, make_model, make_recipe):
    model = make_model()
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()])]

    def after_step(_):
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    recipe = make_recipe(gradient_clip=0.01, optimizer=functools.partial(torch.optim.SGD, lr=0.5))
    train(model=model, recipe=recipe, after_step=after_step)
    moves = [(after - before).norm().item() for before, after in pairwise(weights)]
    assert moves == pytest.approx([0.5 * 0.01] * 21, rel=1e-3)


def test_hooks_see_every_step_and_epoch(train, make_recipe):
    steps, epochs, records = [], [], []
    train(
        recipe=make_recipe(epochs=2),
        after_step=steps.append,
        before_epoch=epochs.append,
        on_epoch=records.append,
    )
    assert steps == list(range(1, 15))
    assert epochs == [0, 1]
    assert [type(record) for record in records] == [EpochRecord, EpochRecord]


def test_a_module_frozen_before_the_epoch_stays_frozen(train, make_model, make_recipe):
    model = make_model()
    mean = model[1].running_mean
    train(model=model, recipe=make_recipe(epochs=2), before_epoch=lambda epoch: model[1].eval())
    assert torch.equal(mean, torch.zeros(4))


def test_progress_is_told_at_most_ten_times_a_second(train, make_recipe, monkeypatch):
    clock = iter(0.03 * tick for tick in range(10_000))
    monkeypatch.setattr("compresskd.training.epoch.time.perf_counter", lambda: next(clock))
    told = []
    train(recipe=make_recipe(epochs=1, batch_size=5), on_step=told.append)
    assert told[0].step == 4
    assert told[0].steps == 40
    assert 8 <= len(told) <= 12
    assert all(0 <= p.metrics["accuracy"] <= 1 and p.loss > 0 and p.samples_per_second > 0 for p in told)


def test_progress_ends_where_the_updates_do(train, make_recipe, monkeypatch):
    monkeypatch.setattr("compresskd.training.epoch.SECONDS_PER_REPORT", 0.0)
    told = []
    recipe = make_recipe(epochs=3, batch_size=32)  # 7 batches
    train(recipe=replace(recipe, max_steps=5, gradient_accumulation=2), on_step=told.append)
    assert [(each.epoch, each.step, each.steps) for each in told] == [
        *((0, done, 7) for done in (2, 4, 6, 7)),
        (1, 2, 2),
    ]


def test_extra_modules_are_trained_along(train, blobs, cross_entropy):
    projector = nn.Linear(4, 4)
    before = projector.weight.detach().clone()

    def loss(model, batch):
        total, terms, logits, _ = cross_entropy(model, batch)
        return LossOutput(total + projector(logits).square().mean(), terms, logits)

    train(loss=loss, extra_modules=[projector])
    assert not torch.equal(projector.weight, before)


def test_a_model_without_trainable_parameters_is_refused(train, make_model):
    with pytest.raises(ValueError, match="nothing to train"):
        train(model=make_model().requires_grad_(False))


def test_channels_last_trains_and_leaves_contiguous_weights(train, make_recipe):
    seen = set()

    def remember(model, batch):
        seen.add(batch.inputs.is_contiguous(memory_format=torch.channels_last))
        logits = model(batch.inputs)
        return LossOutput(F.cross_entropy(logits, batch.targets), {}, logits)

    model, result = train(recipe=make_recipe(channels_last=True), loss=remember)
    assert seen == {True}
    assert all(value.is_contiguous() for value in model.state_dict().values())
    plain = train()[1]
    assert result.history[0].train["loss"] == pytest.approx(plain.history[0].train["loss"], rel=1e-4)


def test_batches_on_another_device_are_refused_by_name(train):
    with pytest.raises(ValueError, match=says("data", "data.to('meta'")):
        train(device="meta")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, inside its compiler
def test_compiled_training_agrees_with_eager(train, make_recipe, make_model, monkeypatch):
    # Traced and differentiated as by the default backend; no C++ is generated, which takes half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain = make_recipe(batch_size=40)
    eager = train(model=make_model(dropout=0.0), recipe=plain)[1]
    model, compiled = train(model=make_model(dropout=0.0), recipe=replace(plain, compile=True))
    assert compiled.history[-1].train["loss"] == pytest.approx(eager.history[-1].train["loss"], rel=1e-3)
    assert next(iter(model.state_dict())) == "0.weight"  # not that of the compiled wrapper
