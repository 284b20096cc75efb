"""Values and gradients at any temperature against what the papers' code computes, written again in float64."""

import math

import pytest
import torch
from refusals import says

from compresskd.kd.correlation import DIST
from compresskd.kd.decoupled import DKD, NKD
from compresskd.kd.features import RKD, AttentionTransfer, Hint, SimilarityPreserving
from compresskd.kd.logits import CrossEntropy, JensenShannon, LogitMSE, ReverseKL, SoftTargets
from compresskd.kd.matching import match_features
from compresskd.tasks import ModelOutputs

B, K = 16, 10
TEMPERATURES = [0.1, 0.5, 1.0, 4.0, 20.0, 1e2, 1e3, 1e4, 1e5, 1e6]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    student, teacher = (3 * torch.randn(B, K, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(0, K, (B,), generator=generator)


def soft_targets(s, t, targets, temperature):
    log_p, log_q = (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum() / len(s)


def dkd(s, t, targets, temperature, alpha=1.0, beta=8.0):
    """Their own masking: 1000 is taken from the target's logit over T, so that it has no share in the others."""
    chosen = torch.nn.functional.one_hot(targets, s.shape[1]).bool()
    p, q = (s / temperature).softmax(1), (t / temperature).softmax(1)
    p2, q2 = (torch.stack([(x * chosen).sum(1), (x * ~chosen).sum(1)]) for x in (p, q))
    log_p, log_q = ((x / temperature - 1000.0 * chosen).log_softmax(1) for x in (s, t))
    tckd = (q2 * (q2.log() - p2.log())).sum()
    nckd = torch.where(chosen, 0.0, log_q.exp() * (log_q - log_p)).sum()
    return temperature**2 * (alpha * tckd + beta * nckd) / len(s)


def nkd(s, t, targets, temperature, gamma=1.5):
    rows = torch.arange(len(s))
    others = [torch.tensor([k for k in range(s.shape[1]) if k != c]) for c in targets.tolist()]
    target = (t.softmax(1)[rows, targets] * s.log_softmax(1)[rows, targets]).mean()
    s, t = (torch.stack([row[o] for row, o in zip(x, others, strict=True)]) for x in (s, t))
    rest = ((t / temperature).softmax(1) * (s / temperature).log_softmax(1)).sum(1).mean()
    return -target - gamma * temperature**2 * rest


def dist(s, t, targets, temperature, beta=2.0, gamma=2.0):
    """The epsilon stands beside the product of the norms."""

    def distance(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    p, q = (s / temperature).softmax(1), (t / temperature).softmax(1)
    return temperature**2 * (beta * distance(p, q) + gamma * distance(p.T, q.T))


def reverse_kl(s, t, targets, temperature):
    return soft_targets(t, s, targets, temperature)


def jensen_shannon(s, t, targets, temperature, beta=0.5):
    p, q = (t / temperature).softmax(1), (s / temperature).softmax(1)
    m = beta * p + (1 - beta) * q
    of_teacher, of_student = ((x * (x.log() - m.log())).sum() for x in (p, q))
    return temperature**2 * (beta * of_teacher + (1 - beta) * of_student) / len(s)


TERMS = {
    SoftTargets: soft_targets, DKD: dkd, NKD: nkd, DIST: dist, ReverseKL: reverse_kl, JensenShannon: jensen_shannon,
}  # fmt: skip


def value_and_gradient(loss, student):
    student = student.clone().requires_grad_()
    value = loss(student)
    (gradient,) = torch.autograd.grad(value, student)
    return value.item(), gradient.double()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("cls", TERMS)
def test_as_the_papers_code_in_float64(cls, temperature, batch):
    student, teacher, targets = batch
    term = cls(temperature=temperature)
    value, gradient = value_and_gradient(
        lambda s: term(ModelOutputs(s), ModelOutputs(teacher), targets), student
    )
    expected, expected_gradient = value_and_gradient(
        lambda s: TERMS[cls](s, teacher.double(), targets, temperature), student.double()
    )
    # beyond T = 1e5 the digits that are left to float64 itself are the limit
    tolerance = 1e-4 if temperature < 1e5 else 2e-3
    if cls is JensenShannon and temperature < 0.5:  # where both hardly overlap little is left of the gradient
        tolerance = 1e-3
    assert value == pytest.approx(expected, rel=tolerance)
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    assert error < tolerance


@pytest.mark.parametrize("cls", [SoftTargets, DKD])
def test_the_limit_of_a_high_temperature(cls, batch):
    """Half the variance over the classes of what student and teacher differ by; DKD has two such."""
    student, teacher, targets = batch
    d = (student - teacher).double()
    if cls is SoftTargets:
        expected = d.var(dim=1, correction=0).mean() / 2
    else:
        chosen = torch.nn.functional.one_hot(targets, K).bool()
        others = d[~chosen].view(B, K - 1)
        spread = (d[chosen] - others.mean(1)).square() * (K - 1) / K**2  # of two values at 1 / K and the rest
        expected = (spread / 2 + 8 * others.var(dim=1, correction=0) / 2).mean()
    got = cls(temperature=1e6)(ModelOutputs(student), ModelOutputs(teacher), targets)
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("cls", [SoftTargets, ReverseKL, JensenShannon, DKD, NKD])
def test_equal_logits_are_the_least_and_do_not_pull(cls, temperature, batch):
    student, _, targets = batch
    options = {"gamma": 1.0} if cls is NKD else {}
    term = cls(temperature=temperature, **options)
    value, gradient = value_and_gradient(
        lambda s: term(ModelOutputs(s), ModelOutputs(student), targets), student
    )
    if cls is NKD:  # the pull of the target's term alone
        _, gradient_at_one = value_and_gradient(
            lambda s: NKD(gamma=0.0)(ModelOutputs(s), ModelOutputs(student), targets), student
        )
        assert torch.equal(gradient, gradient_at_one)
    else:
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("temperature", [0.1, 4.0, 1e6])
@pytest.mark.parametrize("cls", [SoftTargets, ReverseKL, JensenShannon, LogitMSE, DKD, NKD, DIST])
def test_finite_for_logits_of_any_size(cls, temperature, scale, batch):
    student, teacher, targets = batch
    term = cls() if cls is LogitMSE else cls(temperature=temperature)
    value, gradient = value_and_gradient(
        lambda s: term(ModelOutputs(scale * s), ModelOutputs(scale * teacher), targets), student
    )
    assert math.isfinite(value)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("cls", [SoftTargets, ReverseKL, JensenShannon, LogitMSE, DKD, NKD, DIST])
def test_one_class_is_refused(cls, standardize):
    if cls is LogitMSE and not standardize:  # one value of a regression can be compared
        return
    with pytest.raises(ValueError, match=r"of 2 or more, got \[4, 1\] from the student"):
        cls(standardize=standardize)(
            ModelOutputs(torch.zeros(4, 1)), ModelOutputs(torch.zeros(4, 1)), torch.zeros(4).long()
        )


@pytest.mark.parametrize("cls", [SoftTargets, ReverseKL, JensenShannon, LogitMSE, DKD, NKD, DIST])
def test_shapes_that_would_broadcast_are_refused(cls):
    with pytest.raises(ValueError, match=r"logits of one shape .* \[4, 3\] from the student, \[1, 3\]"):
        cls()(ModelOutputs(torch.zeros(4, 3)), ModelOutputs(torch.zeros(1, 3)), torch.zeros(4).long())


def test_one_class_is_refused_before_training():
    model = torch.nn.Linear(5, 1)
    with pytest.raises(ValueError, match=says("student, teacher", "logits", "[2, 1]")):
        match_features({}, model, model, torch.zeros(2, 5), least=2)


@pytest.mark.parametrize("cls", [SoftTargets, ReverseKL, JensenShannon, LogitMSE, DKD, NKD, DIST])
def test_two_classes_and_one_sample_are_enough(cls):
    student = torch.tensor([[1.0, -1.0]])
    value, gradient = value_and_gradient(
        lambda s: cls()(ModelOutputs(s), ModelOutputs(-student), torch.tensor([1])), student
    )
    assert math.isfinite(value)
    assert gradient.isfinite().all()
    assert value > 0


@pytest.mark.parametrize("cls", [Hint, AttentionTransfer, SimilarityPreserving, RKD])
def test_features_of_a_single_sample_are_finite(cls):
    feature = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))

    def of(x):
        return ModelOutputs(torch.zeros(1, 2), {"layer": x})

    value, gradient = value_and_gradient(
        lambda s: cls()(of(s), of(feature.flip(1) + 1), torch.tensor([0])), feature
    )
    assert math.isfinite(value)
    assert gradient.isfinite().all()


def test_cross_entropy_of_one_class_is_zero():
    assert CrossEntropy()(ModelOutputs(torch.randn(3, 1)), None, torch.zeros(3).long()).item() == 0
