"""The divergence: values and gradients are those of autograd through the definition, in parts and as a whole."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresskd.kd import divergence as module
from compresskd.kd.divergence import divergence, divergence_between, jensen_shannon

SCALES = (1e-3, 0.1, 1.0, 20.0)


def defined(t, difference):
    """KL and mean by autograd through their definitions."""
    log_q, log_p = F.log_softmax(t, dim=-1), F.log_softmax(t + difference, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1), (log_q.exp() * difference).sum(-1)


def logits(*shape, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradients(values, arguments, weights):
    total = sum((weight * value).sum() for weight, value in zip(weights, values, strict=True))
    return torch.autograd.grad(total, arguments, retain_graph=True)


@pytest.mark.parametrize("at_once", [7, 1 << 17])  # each row by itself, or all of them
@pytest.mark.parametrize("scale", [*SCALES, "mixed"])
def test_values_and_gradients_are_those_of_the_definition(scale, at_once, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    t = logits(3, 4, 9).requires_grad_()
    each = torch.tensor(SCALES * 3).view(3, 4, 1) if scale == "mixed" else scale
    d = (each * logits(3, 4, 9, seed=1)).requires_grad_()
    found, expected = divergence(t, d), defined(t, d)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)  # the series is exact in float32
    weights = logits(3, 4, seed=2), logits(3, 4, seed=3)
    for one, other in zip(
        gradients(found, (t, d), weights), gradients(expected, (t, d), weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0, 1000.0])
@pytest.mark.parametrize("wanted", ["student", "teacher", "both"])
def test_between_two_logits_at_a_temperature(wanted, temperature):
    t = logits(5, 11).requires_grad_(wanted != "student")
    s = logits(5, 11, scale=3.0, seed=1).requires_grad_(wanted != "teacher")
    arguments = [each for each in (t, s) if each.requires_grad]
    weights = logits(5, seed=2), logits(5, seed=3)
    found = divergence_between(t, s, temperature)
    expected = defined(t / temperature, (s - t) / temperature)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)
    for one, other in zip(
        gradients(found, arguments, weights), gradients(expected, arguments, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("output", [0, 1])
def test_one_of_the_two_may_be_all_that_is_used(output):
    t, s = logits(4, 6).requires_grad_(), logits(4, 6, seed=1).requires_grad_()
    found = torch.autograd.grad(divergence_between(t, s)[output].sum(), (t, s))
    expected = torch.autograd.grad(defined(t, s - t)[output].sum(), (t, s))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_logits_in_any_layout_and_none_at_all():
    t, s = logits(6, 3, 4).permute(1, 2, 0), logits(4, 3, 6, seed=1).transpose(0, 1).requires_grad_()
    kl, _ = divergence_between(t, s)
    (found,) = torch.autograd.grad(kl.sum(), s)
    other = s.detach().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(divergence_between(t.contiguous(), other)[0].sum(), other)
    assert kl.shape == (3, 4)
    assert torch.equal(found, expected)
    empty = torch.zeros(0, 5, requires_grad=True)
    kl, mean = divergence_between(torch.zeros(0, 5), empty)
    assert kl.shape == mean.shape == (0,)
    assert torch.autograd.grad(kl.sum(), empty)[0].shape == (0, 5)


def test_what_is_never_chosen_has_no_gradient():
    t = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -1.0, -torch.inf]])
    d = torch.tensor([[0.1, 0.3, 0.0], [90.0, -5.0, 0.0]], requires_grad=True)
    kl, _ = divergence(t, d)
    (grad,) = torch.autograd.grad(kl.sum(), d)
    assert torch.isfinite(kl).all()
    assert torch.isfinite(grad).all()
    assert torch.equal(grad[:, 2], torch.zeros(2))
    expected, _ = divergence(t[:, :2], d[:, :2])
    assert torch.equal(kl, expected)


def test_what_is_not_finite_is_not_hidden():
    t, s = torch.zeros(2, 3), torch.zeros(2, 3, requires_grad=True)
    for bad in (torch.nan, torch.inf):
        with torch.no_grad():
            s[0, 1] = bad
        kl, _ = divergence_between(t, s)
        assert not torch.isfinite(kl[0])
        assert kl[1] == 0


def test_gradients_in_float32_are_as_good_as_the_numbers():
    t, s = logits(64, 1000, scale=3.0), logits(64, 1000, scale=3.0, seed=1)
    for temperature, scale in ((1.0, 0.01), (4.0, 1.0), (1000.0, 1.0)):
        exact, plain = (
            (t + scale * s).to(dtype).requires_grad_() for dtype in (torch.float64, torch.float32)
        )
        (expected,) = torch.autograd.grad(divergence_between(t, exact, temperature)[0].sum(), exact)
        (found,) = torch.autograd.grad(divergence_between(t.float(), plain, temperature)[0].sum(), plain)
        assert float((found - expected).norm() / expected.norm()) < 1e-4 * min(1.0, 1 / scale) + 1e-6


@pytest.mark.parametrize("found", [lambda t, s: divergence_between(t, s, 4.0)[0], jensen_shannon])
@pytest.mark.parametrize("shape", [(32, 500), (1, 5000)])
def test_nothing_but_the_arguments_is_kept_of_what_is_large(found, shape, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 1 << 12)
    t, s = logits(*shape), logits(*shape, seed=1).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        found(t, s)
    large = {tensor.data_ptr() for tensor in kept if tensor.numel() >= t.numel()}
    assert large == {t.data_ptr(), s.data_ptr()}


@pytest.mark.parametrize("at_once", [7, 1 << 17])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 20.0, 300.0])
def test_jensen_and_shannons_is_that_of_the_definition(scale, beta, at_once, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    t = logits(3, 4, 9).requires_grad_()
    s = (t + scale * logits(3, 4, 9, seed=1)).detach().requires_grad_()
    log_p, log_q = (F.log_softmax(each / 2, dim=-1) for each in (t, s))
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    expected = beta * (log_p.exp() * (log_p - log_m)).sum(-1)
    expected = expected + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum(-1)
    found = jensen_shannon(t, s, 2.0, beta)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-14)
    weights = (logits(3, 4, seed=2),)
    for wanted in ((t, s), (t,), (s,)):
        given = [each if any(each is one for one in wanted) else each.detach() for each in (t, s)]
        mine = gradients((jensen_shannon(*given, 2.0, beta),), wanted, weights)
        for one, other in zip(mine, gradients((expected,), wanted, weights), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-13)


def test_jensen_and_shannons_where_a_share_underflows():
    # what one of the two never chooses is a half of the mixture
    t, s = torch.tensor([[0.0, -200.0, -95.0]]), torch.tensor([[-200.0, 0.0, -70.0]], requires_grad=True)
    value = jensen_shannon(t, s)
    assert value.detach().item() == pytest.approx(math.log(2), rel=1e-6)
    (found,) = torch.autograd.grad(value.sum(), s)
    assert torch.isfinite(found).all()
    s64 = s.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(jensen_shannon(t.double(), s64).sum(), s64)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler itself
def test_a_compiled_step_gives_the_same():
    layer = nn.Linear(6, 5).double()
    x, t = logits(8, 6), logits(8, 5, seed=1)

    def step():
        return divergence_between(t, layer(x), 2.0)[0].mean()

    compiled = torch.compile(step, backend="aot_eager")
    expected = torch.autograd.grad(step(), layer.weight)[0]
    try:
        torch.testing.assert_close(torch.autograd.grad(compiled(), layer.weight)[0], expected)
    finally:
        torch._dynamo.reset()
