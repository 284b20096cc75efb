import pytest
import torch

from compresskd.quant.estimators import LearnedStep, Rounding, StraightThrough, lsq_factor
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.granularity import PerChannel, PerGroup, PerTensor
from compresskd.quant.grid import Grid

CASES = [
    (Grid(2), None),
    (Grid(2, "half_integer"), None),
    (Grid(2, "ternary"), None),
    (Grid(3), None),
    (Grid(4, "affine"), 3),
    (Grid(8), None),
]


def closed_form(w, scale, zero, grid):
    """Esser et al. 2020, equation 3, element by element: levels, derivative by scale, whether w is inside."""
    lowest, highest = grid.low - zero + grid.shift, grid.high - zero + grid.shift
    v = (w / scale).tolist()
    levels, slopes, inside = [], [], []
    for value in v:
        inner = lowest < value < highest
        level = round(value - grid.shift) + grid.shift
        slopes.append(level - value if inner else (lowest if value <= lowest else highest))
        levels.append(min(max(level, lowest), highest))
        inside.append(float(inner))
    return torch.tensor(levels), torch.tensor(slopes), torch.tensor(inside)


@pytest.mark.parametrize(("grid", "zero"), CASES, ids=str)
def test_lsq_gradient_equals_equation_3_of_lsq(grid, zero):
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.375], dtype=torch.float16)
    w = (torch.randn(400, generator=generator) * 0.4 * grid.num_levels / 2).requires_grad_()
    grad = torch.randn(400, generator=generator)
    log_scale = scale.float().log().requires_grad_()
    zero_point = None if zero is None else torch.tensor([zero], dtype=torch.int8)
    out = LearnedStep.apply(w, log_scale, Rounding(scale, zero_point, grid, PerTensor()))
    out.backward(grad)
    levels, slopes, inside = closed_form(w.detach(), 0.375, zero or 0, grid)
    torch.testing.assert_close(out, levels * 0.375)
    assert torch.equal(w.grad, grad * inside)
    size = w.detach().double().square().mean().sqrt()
    assert size > 0.375 / 2
    expected = (grad.double() * slopes.double()).sum() * lsq_factor(400, grid) / size
    torch.testing.assert_close(log_scale.grad.double(), expected.reshape(1), rtol=1e-4, atol=1e-5)


def test_gradient_factor_is_one_over_root_of_n_times_q():
    assert lsq_factor(100, Grid(4)) == pytest.approx((100 * 7) ** -0.5)
    assert lsq_factor(100, Grid(2, "half_integer")) == pytest.approx((100 * 1.5) ** -0.5)
    assert lsq_factor(100, Grid(4, "affine")) == pytest.approx((100 * 15) ** -0.5)


@pytest.mark.parametrize(("grid", "zero"), CASES, ids=str)
def test_straight_through_passes_the_gradient_where_nothing_is_clipped(grid, zero):
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([0.25], dtype=torch.float16)
    w = (torch.randn(300, generator=generator) * 0.3 * grid.num_levels / 2).requires_grad_()
    grad = torch.randn(300, generator=generator)
    zero_point = None if zero is None else torch.tensor([zero], dtype=torch.int8)
    StraightThrough.apply(w, Rounding(scale, zero_point, grid, PerTensor())).backward(grad)
    _, _, inside = closed_form(w.detach(), 0.25, zero or 0, grid)
    assert 0 < inside.mean() < 1 or grid.bits == 8
    assert torch.equal(w.grad, grad * inside)


@pytest.mark.parametrize("granularity", [PerChannel(0), PerGroup(7)], ids=str)
def test_every_scale_gets_the_gradient_of_its_own_weights(granularity):
    w = torch.randn(3, 14, generator=torch.Generator().manual_seed(2))
    count = granularity.num_scales(w.shape)
    scale = torch.linspace(0.2, 0.5, count).half()
    log_scale = scale.float().log().requires_grad_()
    LearnedStep.apply(w, log_scale, Rounding(scale, None, Grid(3), granularity)).sum().backward()
    labels = granularity.expand(torch.arange(count), w.shape).expand(w.shape)
    for i in range(count):
        own = scale[i : i + 1].float().log().requires_grad_()
        LearnedStep.apply(
            w[labels == i], own, Rounding(scale[i : i + 1], None, Grid(3), PerTensor())
        ).sum().backward()
        torch.testing.assert_close(log_scale.grad[i], own.grad[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("width", [27, 144, 1152])
def test_scale_changes_at_most_by_about_the_ratio_of_the_weights(bits, width):
    """Section 2.2 of the paper, with a weight clipped in every channel as least squares clips: R near 1 or below."""
    generator = torch.Generator().manual_seed(bits)
    w = torch.randn(64, width, generator=generator, requires_grad=True)
    scale = (0.9 * w.detach().abs().amax(1) / (2 ** (bits - 1) - 0.5)).half()
    log_scale = scale.float().log().requires_grad_()
    grad = torch.randn(64, width, generator=generator)
    LearnedStep.apply(w, log_scale, Rounding(scale, None, Grid(bits), PerChannel(0))).backward(grad)
    of_weights = w.grad.norm(dim=1) / w.detach().norm(dim=1)
    ratio = (log_scale.grad.abs() / of_weights).square().mean().sqrt()
    assert 0.02 < ratio < 3


def test_weights_of_zero_give_their_scale_a_finite_gradient():
    w = torch.zeros(3, 8, requires_grad=True)
    log_scale = torch.full((3,), 1e-3).log().requires_grad_()
    scale = log_scale.detach().exp().half()
    LearnedStep.apply(
        w, log_scale, Rounding(scale, None, Grid(2, "half_integer"), PerChannel(0))
    ).sum().backward()
    assert torch.isfinite(log_scale.grad).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_stay_in_place_under_gradient_descent_with_momentum(bits):
    """Small channels with a few clipped weights, whose scales once ran away within fifty steps."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(0.1 * torch.randn(16, 27))
    target = w.detach() + 0.02 * torch.randn(16, 27)
    quantizer = FakeQuant(w, Grid(bits), PerChannel(0))
    start = quantizer.log_scale.detach().clone()
    optimizer = torch.optim.SGD([w, quantizer.log_scale], lr=0.01, momentum=0.9, nesterov=True)
    for _ in range(200):
        x = torch.randn(64, 27)
        loss = (x @ (quantizer(w) - target).T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (quantizer.log_scale.detach() - start).abs().max() < 0.5
    assert loss < 0.01
