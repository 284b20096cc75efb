import math

import numpy as np
import pytest
import torch

from compresskd.kd.correlation import DIST
from compresskd.kd.decoupled import DKD, NKD
from compresskd.kd.logits import CrossEntropy, LogitMSE, SoftTargets, standardized
from compresskd.tasks import ModelOutputs

B, K = 6, 5
DISTILLING = [SoftTargets, LogitMSE, DKD, NKD, DIST]


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(3)
    student = 2 * torch.randn(B, K, generator=generator)
    teacher = 2 * torch.randn(B, K, generator=generator)
    return student, teacher


@pytest.fixture
def targets():
    return torch.tensor([0, 4, 2, 1, 4, 3])


def loss(term, student, teacher, targets):
    return term(ModelOutputs(student), None if teacher is None else ModelOutputs(teacher), targets)


@pytest.mark.parametrize("cls", [SoftTargets, LogitMSE, DKD, DIST])
@pytest.mark.parametrize("standardize", [False, True])
def test_zero_on_equal_logits(cls, standardize, logits, targets):
    term, student = cls(standardize=standardize), logits[0].requires_grad_()
    value = loss(term, student, logits[0].detach().clone(), targets)
    value.backward()
    # the epsilon of DIST keeps its distance from being quite 0
    assert value.item() == pytest.approx(0, abs=2e-4 if cls is DIST else 0)
    assert student.grad.abs().max().item() == pytest.approx(0, abs=2e-4 if cls is DIST else 0)
    assert loss(term, *logits, targets) > 0.05


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_targets_gradient_is_the_closed_form(temperature, logits, targets):
    student, teacher = logits[0].requires_grad_(), logits[1]
    loss(SoftTargets(temperature=temperature), student, teacher, targets).backward()
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, temperature / B * difference, rtol=1e-5, atol=1e-6)


def test_soft_targets_value_is_the_divergence(logits, targets):
    s, t = (x.double().numpy() / 3 for x in logits)
    p, q = softmax(s), softmax(t)
    expected = 9 * (q * (np.log(q) - np.log(p))).sum() / B
    assert loss(SoftTargets(temperature=3.0), *logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_soft_targets_approach_half_the_logit_mse_at_a_high_temperature(logits, targets):
    student, teacher = (x - x.mean(dim=-1, keepdim=True) for x in logits)
    mse = loss(LogitMSE(), student, teacher, targets).item()
    # T^2 KL loses digits in float32 as T grows: 100 is far enough for 3 of them.
    limit = 2 * loss(SoftTargets(temperature=100.0), student, teacher, targets).item()
    assert limit == pytest.approx(mse, rel=3e-2)
    nearer = 2 * loss(SoftTargets(temperature=10.0), student, teacher, targets).item()
    assert abs(limit - mse) < abs(nearer - mse)


def test_logit_mse_gradient(logits, targets):
    student, teacher = logits[0].requires_grad_(), logits[1]
    loss(LogitMSE(), student, teacher, targets).backward()
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / (B * K))


def test_dkd_is_soft_targets_when_the_parts_are_coupled_as_the_paper_shows(logits, targets):
    """Equation 5: KD = TCKD + (1 - p_t) NCKD, sample by sample, p_t the teacher's for the target class."""
    for i in range(B):
        student, teacher, target = logits[0][i : i + 1], logits[1][i : i + 1], targets[i : i + 1]
        rest = 1 - (teacher / 4).softmax(-1)[0, target].item()
        coupled = loss(DKD(target_weight=1.0, non_target_weight=rest), student, teacher, target)
        assert coupled.item() == pytest.approx(
            loss(SoftTargets(), student, teacher, target).item(), rel=1e-4, abs=1e-5
        )


def dkd_oracle(s, t, targets, *, temperature, alpha, beta):
    total = 0.0
    for s_i, t_i, c in zip(s / temperature, t / temperature, targets, strict=True):
        p, q = softmax(s_i), softmax(t_i)
        p_others, q_others = softmax(np.delete(s_i, c)), softmax(np.delete(t_i, c))
        tckd = q[c] * np.log(q[c] / p[c]) + (1 - q[c]) * np.log((1 - q[c]) / (1 - p[c]))
        nckd = (q_others * np.log(q_others / p_others)).sum()
        total += alpha * tckd + beta * nckd
    return temperature**2 * total / len(s)


@pytest.mark.parametrize(
    ("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (2.0, 0.0, 1.0), (0.0, 1.0, 2.0)]
)
def test_dkd_against_numpy(alpha, beta, temperature, logits, targets):
    s, t = (x.double().numpy() for x in logits)
    term = DKD(target_weight=alpha, non_target_weight=beta, temperature=temperature)
    expected = dkd_oracle(s, t, targets.numpy(), temperature=temperature, alpha=alpha, beta=beta)
    assert loss(term, *logits, targets).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.5, 3.0)])
def test_nkd_against_numpy(gamma, temperature, logits, targets):
    s, t = (x.double().numpy() for x in logits)
    expected = 0.0
    for s_i, t_i, c in zip(s, t, targets.numpy(), strict=True):
        # The paper's form: probabilities without the target's, divided by their own sum.
        s_soft, t_soft = np.delete(softmax(s_i / temperature), c), np.delete(softmax(t_i / temperature), c)
        others = (t_soft / t_soft.sum() * np.log(s_soft / s_soft.sum())).sum()
        expected -= softmax(t_i)[c] * np.log(softmax(s_i)[c]) + gamma * temperature**2 * others
    term = NKD(gamma=gamma, temperature=temperature)
    assert loss(term, *logits, targets).item() == pytest.approx(expected / B, rel=1e-5)


@pytest.mark.parametrize(
    ("beta", "gamma", "temperature"), [(2.0, 2.0, 4.0), (1.0, 0.0, 1.0), (0.0, 3.0, 2.0)]
)
def test_dist_against_numpy(beta, gamma, temperature, logits, targets):
    p, q = (softmax(x.double().numpy() / temperature) for x in logits)
    inter = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(B)])
    intra = np.mean([1 - np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(K)])
    expected = temperature**2 * (beta * inter + gamma * intra)
    term = DIST(beta=beta, gamma=gamma, temperature=temperature)
    assert loss(term, *logits, targets).item() == pytest.approx(expected, rel=1e-4)


def test_dist_survives_a_batch_of_one(logits):
    student = logits[0][:1].requires_grad_()
    loss(DIST(), student, logits[1][:1], torch.tensor([0])).backward()
    assert torch.isfinite(student.grad).all()


def test_standardized_is_the_z_score(logits):
    x = logits[0].double().numpy()
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(standardized(logits[0]).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", DISTILLING)
def test_standardize_forgets_scale_and_shift(cls, logits, targets):
    student, teacher = logits
    moved = student * torch.linspace(0.2, 5, B)[:, None] + torch.linspace(-9, 9, B)[:, None]
    expected = loss(cls(standardize=True), student, teacher, targets).item()
    assert loss(cls(standardize=True), moved, 3 * teacher - 2, targets).item() == pytest.approx(
        expected, rel=1e-4
    )
    assert loss(cls(), moved, teacher, targets).item() != pytest.approx(
        loss(cls(), student, teacher, targets).item(), rel=1e-3
    )


@pytest.mark.parametrize("cls", DISTILLING)
def test_standardize_of_constant_logits_has_a_finite_gradient(cls, logits, targets):
    student = torch.zeros(B, K, requires_grad=True)
    loss(cls(standardize=True), student, logits[1], targets).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [CrossEntropy, *DISTILLING])
def test_low_precision_logits_are_computed_in_float32(cls, dtype, logits, targets):
    student, teacher = (x.to(dtype) for x in logits)
    got = loss(cls(), student, teacher, targets)
    assert got.dtype == torch.float32
    # Equal to the bit: all that low precision costs is what the logits had lost before.
    assert got.item() == loss(cls(), student.float(), teacher.float(), targets).item()


@pytest.mark.parametrize("cls", DISTILLING)
def test_extreme_logits_stay_finite(cls, targets):
    student = (200 * torch.eye(K)[targets]).requires_grad_()
    teacher = 200 * torch.eye(K)[targets.flip(0)]
    value = loss(cls(), student, teacher, targets)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("cls", DISTILLING)
def test_no_gradient_reaches_the_teacher(cls, logits, targets):
    student, teacher = (x.requires_grad_() for x in logits)
    loss(cls(), student, teacher, targets).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_cross_entropy_takes_classes_and_probabilities(logits, targets):
    one_hot = torch.eye(K)[targets]
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    hard = loss(CrossEntropy(), logits[0], None, targets).item()
    assert loss(CrossEntropy(), logits[0], None, one_hot).item() == pytest.approx(hard, rel=1e-6)
    expected = 0.3 * hard + 0.7 * loss(CrossEntropy(), logits[0], None, targets.flip(0)).item()
    assert loss(CrossEntropy(), logits[0], None, mixed).item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_smooths_labels(logits, targets):
    log_p = logits[0].log_softmax(-1)
    expected = 0.9 * -log_p[torch.arange(B), targets].mean() + 0.1 * -log_p.mean()
    smoothed = loss(CrossEntropy(label_smoothing=0.1), logits[0], None, targets)
    assert smoothed.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("cls", [DKD, NKD])
def test_mixed_targets_count_as_their_most_probable_class(cls, logits, targets):
    one_hot = torch.eye(K)[targets]
    mixed = 0.8 * one_hot + 0.2 * one_hot.roll(1, 0)
    assert loss(cls(), *logits, mixed).item() == loss(cls(), *logits, targets).item()


@pytest.mark.parametrize("cls", [SoftTargets, DKD, NKD, DIST])
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "4"])
def test_impossible_temperature(cls, temperature):
    with pytest.raises(ValueError, match=r"^temperature: got "):
        cls(temperature=temperature)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), "train.label_smoothing"),
        (lambda: CrossEntropy(label_smoothing=-0.1), "train.label_smoothing"),
        (lambda: DKD(target_weight=-1.0), "kd.target_weight"),
        (lambda: DKD(non_target_weight=-1.0), "kd.non_target_weight"),
        (lambda: NKD(gamma=-1.0), "kd.gamma"),
        (lambda: DIST(beta=-1.0), "kd.beta"),
        (lambda: DIST(gamma=math.nan), "kd.gamma"),
    ],
)
def test_impossible_numbers_name_their_key(build, key):
    with pytest.raises(ValueError, match=f"^{key.rpartition('.')[2]}: got"):
        build()


@pytest.mark.parametrize("cls", DISTILLING)
def test_a_missing_teacher_is_named(cls, logits, targets):
    with pytest.raises(ValueError, match=f"{cls.__name__} compares with a teacher"):
        loss(cls(), logits[0], None, targets)
