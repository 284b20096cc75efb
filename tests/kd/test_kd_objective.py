"""The weighted sum of terms: values, reweighting, a term of a user's own."""

import math
from dataclasses import dataclass

import pytest
import torch
from kd_nets import B, K, Net, bind, distilling
from refusals import says

from compresskd.kd.decoupled import DKD
from compresskd.kd.features import Hint, SimilarityPreserving
from compresskd.kd.logits import CrossEntropy, LogitMSE, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.tasks import ModelOutputs

# The sum


def test_total_is_the_weighted_sum_and_parts_are_unweighted(targets):
    student, teacher = ModelOutputs(torch.randn(B, K, requires_grad=True)), ModelOutputs(torch.randn(B, K))
    total, parts = distilling(0.7)(student, teacher, targets)
    cross_entropy = CrossEntropy()(student, None, targets).item()
    soft = SoftTargets()(student, teacher, targets).item()
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy)
    assert parts["soft_targets"].item() == pytest.approx(soft)
    assert total.item() == pytest.approx(0.3 * cross_entropy + 0.7 * soft, rel=1e-6)
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())


def test_scale_multiplies_the_total_alone(targets):
    student, teacher = ModelOutputs(torch.randn(B, K)), ModelOutputs(torch.randn(B, K))
    terms = {"cross_entropy": CrossEntropy(0.5), "dkd": DKD(0.5)}
    total, parts = Objective(terms, scale=2.0)(student, teacher, targets)
    assert total.item() == pytest.approx(sum(parts.values()).item(), rel=1e-6)


def test_terms_of_weight_zero_are_left_out(targets):
    objective = distilling(0.0)
    assert not objective.needs_teacher
    total, parts = objective(ModelOutputs(torch.randn(B, K)), None, targets)
    assert list(parts) == ["cross_entropy"]
    assert total.item() == parts["cross_entropy"].item()


def test_needs():
    assert not Objective({"a": CrossEntropy()}).needs_teacher
    assert distilling().needs_teacher
    assert not distilling().needs_features
    assert Objective({"a": CrossEntropy(), "b": Hint()}).needs_features
    assert not Objective({"a": CrossEntropy(), "b": Hint(weight=0.0)}).needs_features


def test_autocast_does_not_lower_the_precision_of_losses(inputs, targets):
    student, teacher = Net(), Net(width=6)
    bound = bind(SimilarityPreserving(match="same_name"), student, teacher, inputs)
    with bound.attached(student, teacher) as captured, torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            teacher_view = captured.teacher(teacher(inputs))
        student_view = captured.student(student(inputs))
        inside = bound(student_view, teacher_view, targets)[0]
    assert student_view.logits.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert inside.item() == bound(student_view, teacher_view, targets)[0].item()


# Values that cannot be


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Objective({}), says("terms", "at least one")),
        (lambda: distilling(1.2), says("weight", "0", "got")),
        (lambda: distilling(-0.1), says("weight", "0", "1", "-0.1")),
        (
            lambda: distilling(math.nan),
            says("weight", "nan"),
        ),
        (lambda: distilling(0.5, 0), says("temperature", "0")),
        (
            lambda: Objective({"ce": CrossEntropy(-1.0), "mse": LogitMSE(1.0)}),
            says("weight", "0", "-1.0"),
        ),
        (
            lambda: Objective({"ce": CrossEntropy("0.5")}),  # type: ignore[arg-type]
            says("weight", "0.5"),
        ),
        (
            lambda: Objective({"ce": CrossEntropy(0.0), "mse": LogitMSE(0.0)}),
            says("terms", "0"),
        ),
        (
            lambda: Objective({"ce": CrossEntropy()}, scale=0.0),
            says("scale", "0", "0.0"),
        ),
    ],
)
def test_impossible_values_name_their_key(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_unknown_kind_of_term_is_refused():
    @dataclass(frozen=True)
    class Odd:
        weight: float = 1.0
        kind = "labels"

        def __call__(self, student, teacher, targets):
            return student.logits.sum()

    with pytest.raises(ValueError, match=says("terms.odd.kind", "labels")):
        Objective({"odd": Odd()})


# Reweighting


def test_reweighted_alpha_changes_the_loss(targets):
    student, teacher = ModelOutputs(torch.randn(B, K)), ModelOutputs(torch.randn(B, K))
    total, parts = distilling(0.7).reweighted(alpha=0.2)(student, teacher, targets)
    assert total.item() == pytest.approx(
        (0.8 * parts["cross_entropy"] + 0.2 * parts["soft_targets"]).item(), rel=1e-6
    )
    assert total.item() != pytest.approx(distilling(0.7)(student, teacher, targets)[0].item(), rel=1e-3)


def test_reweighted_temperature_changes_the_loss(targets):
    student, teacher = ModelOutputs(torch.randn(B, K)), ModelOutputs(torch.randn(B, K))
    original = distilling(0.7, 4.0)
    total = original.reweighted(temperature=1.5)(student, teacher, targets)[0]
    assert total.item() == distilling(0.7, 1.5)(student, teacher, targets)[0].item()
    assert original.terms["soft_targets"].temperature == 4.0  # type: ignore[attr-defined]


def test_reweighted_leaves_features_and_scale():
    objective = Objective({"a": CrossEntropy(0.3), "b": SoftTargets(0.7), "c": Hint(100.0)}, scale=2.0)
    changed = objective.reweighted(alpha=1.0)
    assert [term.weight for term in changed.terms.values()] == [0.0, 1.0, 100.0]
    assert changed.scale == 2.0
    assert objective.reweighted() == objective


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (distilling(), {"alpha": 1.5}, says("alpha", "1", "1.5")),
        (distilling(), {"temperature": 0.0}, says("temperature", "0.0")),
        (Objective({"a": CrossEntropy()}), {"alpha": 0.5}, says("alpha", "0.5")),
        (
            Objective({"b": SoftTargets()}),
            {"alpha": 0.5},
            says("alpha", "0.5"),
        ),
        (
            Objective({"a": CrossEntropy(), "b": LogitMSE()}),
            {"temperature": 2.0},
            says("temperature", "2.0"),
        ),
    ],
)
def test_reweighting_that_cannot_be(objective, changes, message):
    with pytest.raises(ValueError, match=message):
        objective.reweighted(**changes)


# A user's own term


def test_a_dataclass_with_a_weight_and_a_call_is_a_term(targets):
    @dataclass(frozen=True)
    class Agreement:
        weight: float = 1.0
        temperature: float = 2.0

        def __call__(self, student, teacher, targets):
            return (student.logits - teacher.logits).abs().mean() / self.temperature

    objective = Objective({"a": CrossEntropy(0.5), "own": Agreement(0.5)})
    assert objective.needs_teacher
    changed = objective.reweighted(alpha=0.25, temperature=1.0)
    student, teacher = ModelOutputs(torch.zeros(B, K)), ModelOutputs(torch.ones(B, K))
    total, parts = changed(student, teacher, targets)
    assert parts["own"].item() == 1.0
    assert total.item() == pytest.approx(0.75 * math.log(K) + 0.25, rel=1e-6)
