"""The plans that a record shows are those that the layers run by, at the sizes that they see."""

import torch
from torch import nn

from compresskd import tt
from compresskd.training.tt_plans import plans_used
from compresskd.tt.execution import product
from compresskd.tt.execution.policy import source_of


def model():
    return nn.Sequential(
        tt.TTConv2d(1, 16, ((3, 3), (1, 1)), 3, padding=1), nn.Flatten(), tt.TTLinear((32, 32), (2, 2), 3)
    )


def ran_by(monkeypatch, run):
    """What was asked of the plans of linear layers while `run` ran: (rows, training) to plan."""
    found, original = {}, product.plan_of

    def watched(x, cores, *, training):
        chain, missing = original(x, cores, training=training)
        found["training" if training else "inference", x.shape[0]] = str(chain.plan)
        return chain, missing

    monkeypatch.setattr(product, "plan_of", watched)
    run()
    return found


def test_each_layer_at_each_batch_size(monkeypatch, train, blobs, make_recipe):
    recipe = make_recipe(batch_size=32, evaluation_batch_size=25, epochs=1)
    student = model()
    with tt.plans("fixed"):
        plans = plans_used(student, blobs, recipe, trained=True)
        assert set(plans) == {"0", "2"}
        assert set(plans["2"]) == {
            f"{mode} {rows}x1024"
            for mode, sizes in (("training", (32, 8)), ("inference", (25, 15)))  # 200, 40 and 40 samples
            for rows in sizes
        }
        assert set(plans["0"]) == {name.replace("x1024", "x1x8x8") for name in plans["2"]}
        found = ran_by(monkeypatch, lambda: train(model=student, recipe=recipe))
    assert {f"{mode} {rows}x1024": plan for (mode, rows), plan in found.items()} == plans["2"]
    assert set(plans["0"].values()) <= {"chain", "folded"}


def test_what_is_only_evaluated_has_no_training_plan_and_what_is_compiled_says_so(blobs, make_recipe):
    plans = plans_used(model(), blobs, make_recipe(), trained=False)
    assert not any(name.startswith("training") for each in plans.values() for name in each)
    plans = plans_used(model(), blobs, make_recipe(compile=True), trained=True)
    assert plans["2"]["training 32x1024"] == "compiled"
    assert plans_used(nn.Linear(64, 4), blobs, make_recipe(), trained=True) == {}


def test_looking_leaves_no_hook_and_no_mode_behind(blobs, make_recipe):
    student = model().train()
    plans_used(student, blobs, make_recipe(), trained=True)
    assert all(module.training for module in student.modules())
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_fit_takes_fixed_plans_unless_the_caller_has_chosen(train):
    seen = []

    def note(_):
        seen.append((source_of(training=True), source_of(training=False)))

    train(before_epoch=note)
    assert set(seen) == {("fixed", "fixed")}
    seen.clear()
    with tt.plans("measured"):
        train(before_epoch=note)
    assert set(seen) == {("measured", "measured")}
    assert (source_of(training=True), source_of(training=False)) == ("fixed", "measured")
    assert torch.is_grad_enabled()
