"""Which objectives a task takes: its own by default, and those that are typed where they fit."""

import re

import pytest
from refusals import says

from compresskd.kd.correlation import DIST
from compresskd.kd.decoupled import DKD, NKD
from compresskd.kd.features import Hint
from compresskd.kd.logits import BernoulliTargets, CrossEntropy, LogitMSE, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.tasks import CausalLM, Classification, MultiLabel, Regression, TokenClassification

OF_CLASSES = [SoftTargets(), DKD(), NKD(), DIST()]


def faults(term, task):
    return [error.field for error in Objective({"one": term}).faults(task)]


@pytest.mark.parametrize(
    "task", [Classification(), TokenClassification(), CausalLM()], ids=lambda task: task.name
)
@pytest.mark.parametrize(
    "term", [*OF_CLASSES, CrossEntropy(), LogitMSE(), Hint()], ids=lambda t: type(t).__name__
)
def test_classes_take_every_term_but_that_of_labels(term, task):
    assert faults(term, task) == []
    assert faults(BernoulliTargets(), task) == ["terms.one"]


@pytest.mark.parametrize("task", [MultiLabel(), Regression()], ids=lambda task: task.name)
def test_labels_and_values_take_no_softmax(task):
    assert [faults(term, task) for term in OF_CLASSES] == [["terms.one"]] * 4
    assert [faults(term, task) for term in (CrossEntropy(), LogitMSE(), Hint())] == [[]] * 3
    assert faults(BernoulliTargets(), task) == ([] if task.name == "multi_label" else ["terms.one"])


def test_values_are_not_smoothed():
    assert faults(CrossEntropy(label_smoothing=0.1), Regression()) == ["terms.one.label_smoothing"]


@pytest.mark.parametrize(
    ("arguments", "terms"),
    [
        (("task=regression",), ["cross_entropy", "teacher_error"]),
        (("task=multi_label",), ["cross_entropy", "bernoulli"]),
        (("task=classification",), ["cross_entropy", "soft_targets"]),
        (("task=regression", "kd=logit_mse"), ["cross_entropy", "logit_mse"]),
    ],
    ids=["regression", "multi_label", "classification", "typed"],
)
def test_a_task_has_an_objective_that_a_typed_one_replaces(arguments, terms):
    from compresskd.config.compose import compose_jobs
    from compresskd.config.schema import register

    register()
    (job,) = compose_jobs(list(arguments)).jobs
    assert not job.faults
    assert list(job.config.kd.objective.terms) == terms


def test_a_typed_objective_that_does_not_fit_is_refused_before_anything_is_trained(run_cli, work):
    outcome = run_cli("task=regression", "kd=dkd")
    assert outcome.status == 2
    assert re.search(says("kd.objective.terms.dkd", "squared_error"), outcome.err)
    assert not (work / "outputs").exists()
