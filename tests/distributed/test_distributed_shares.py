"""The value and the gradient of a loss do not depend on how many processes share a batch."""

import pytest
import torch

from compresskd.distributed import of_batch, spread
from compresskd.kd.correlation import DIST
from compresskd.kd.features import RKD, AttentionTransfer, Hint, SimilarityPreserving
from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective
from compresskd.kd.relations import AttentionRelations
from compresskd.kd.vectors import VectorRelations
from compresskd.quant.activation import ActivationQuant
from compresskd.tasks import Classification, ModelOutputs, TokenClassification

B, K, BOUNDS = 5, 4, [(0, 1), (1, 3), (3, 5)]
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
TERMS = {
    "labels": CrossEntropy(label_smoothing=0.1),
    "soft": SoftTargets(weight=2.0),
    "dist": DIST(),
    "vectors": VectorRelations(),
    "hint": Hint(weight=3.0),
    "attention": AttentionTransfer(weight=5.0),
    "relations": AttentionRelations(heads=1),
    "similar": SimilarityPreserving(weight=7.0),
    "rkd": RKD(),
}


def outputs(rows, logits, feature, mask, weights=None, task=None):
    return ModelOutputs(
        logits[rows],
        {"block": feature[rows]},
        None if mask is None else mask[rows],
        weights=None if weights is None else weights[rows],
        task=task or Classification(),
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_that_of_the_whole_batch(in_group, name, weighted, masked):
    torch.manual_seed(2)
    objective = Objective({name: TERMS[name]})
    logits, feature, theirs, other = (torch.randn(s) for s in [(B, K), (B, 4, 6), (B, K), (B, 4, 6)])
    targets, weights = torch.randint(K, (B,)), torch.rand(B) if weighted else None
    mask = MASK if masked else None

    def loss(rows):
        own = [x.clone().requires_grad_() for x in (logits, feature)]
        student = outputs(rows, *own, mask, weights)
        total, parts = objective(student, outputs(rows, theirs, other, mask), targets[rows])
        total.backward()
        gradients = [torch.zeros(1) if x.grad is None else x.grad[rows] for x in own]
        return total.item(), parts[name].item(), gradients

    def call(group):
        start, stop = BOUNDS[group.rank]
        with spread(stop - start, B):
            return loss(slice(start, stop))

    total, part, gradients = loss(slice(0, B))
    found = in_group(3, call)
    assert sum(each[0] for each in found) == pytest.approx(total, rel=1e-5)
    assert sum(each[1] for each in found) == pytest.approx(part, rel=1e-5)
    for place, whole in enumerate(gradients):
        if len(whole) == B:
            together = torch.cat([each[2][place] for each in found])
            torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-6)


def test_rows_of_tokens_count_alike_and_a_share_may_have_none(in_group):
    torch.manual_seed(3)
    logits, targets = torch.randn(6, K), torch.randint(K, (6,))
    bounds = [(0, 0), (0, 5), (5, 6)]  # rows of the samples of each process
    objective = Objective({"labels": CrossEntropy(), "soft": SoftTargets()})

    def loss(start, stop):
        own = logits[start:stop].clone().requires_grad_()
        sample = torch.zeros(stop - start, dtype=torch.long)
        rows = ModelOutputs(own, sample=sample, task=TokenClassification())
        total, _ = objective(rows, ModelOutputs(logits[start:stop].flip(1)), targets[start:stop])
        total.backward()
        return total.item(), own.grad

    def call(group):
        with spread(1, 3):
            return loss(*bounds[group.rank])

    found, whole = in_group(3, call), loss(0, 6)
    assert sum(total for total, _ in found) == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), whole[1])


@pytest.mark.parametrize("estimator", ["straight_through", "lsq"])
def test_activations_are_rounded_alike(in_group, estimator):
    x, pull = torch.randn(B, 6), torch.randn(B, 6)

    def observed():
        return ActivationQuant(estimator=estimator, num_observed=1)

    quants = [observed() for _ in BOUNDS]

    def twice(quant, rows):
        quant(x[rows])
        y = quant(x[rows].clone().requires_grad_())
        (y * pull[rows]).sum().backward()
        return y.detach()

    def call(group):
        start, stop = BOUNDS[group.rank]
        with spread(stop - start, B):
            assert of_batch().world == 3
            return twice(quants[group.rank], slice(start, stop))

    found, whole = in_group(3, call), observed()
    torch.testing.assert_close(torch.cat(found), twice(whole, slice(0, B)), rtol=0, atol=0)
    if estimator == "lsq":
        together = sum(quant.log_scale.grad for quant in quants)
        torch.testing.assert_close(together, whole.log_scale.grad)
