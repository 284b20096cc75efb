import copy

import pytest
import torch
from torch import nn

from compresskd.distributed.batch_norm import batch_norm, synchronized


@pytest.mark.parametrize("shape", [(7, 3, 4, 4), (7, 3), (7, 3, 5)], ids=["images", "vectors", "sequences"])
@pytest.mark.parametrize("affine", [True, False])
def test_spread_over_processes_it_is_that_of_the_whole_batch(in_group, shape, affine):
    torch.manual_seed(1)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    norm, x, pull = kind(3, affine=affine), torch.randn(shape) * 2 + 3, torch.randn(shape)
    models = [copy.deepcopy(norm) for _ in range(3)]
    bounds = [(0, 1), (1, 3), (3, 7)]  # one has a single sample

    def call(group):
        rows = slice(*bounds[group.rank])
        own = x[rows].clone().requires_grad_()
        with synchronized(models[group.rank], group):
            y = models[group.rank](own)
            (y * pull[rows]).sum().backward()
        return y.detach(), own.grad

    found = in_group(3, call)
    whole = x.clone().requires_grad_()
    y = norm(whole)
    (y * pull).sum().backward()
    torch.testing.assert_close(torch.cat([y for y, _ in found]), y.detach())
    torch.testing.assert_close(torch.cat([grad for _, grad in found]), whole.grad, rtol=1e-4, atol=1e-5)
    for own in models:
        torch.testing.assert_close(own.state_dict(), norm.state_dict())
    for name, parameter in norm.named_parameters():
        together = sum(own.get_parameter(name).grad for own in models)
        torch.testing.assert_close(together, parameter.grad, rtol=1e-4, atol=1e-5)


def test_in_evaluation_it_is_torchs(in_group):
    norm = nn.BatchNorm2d(2).eval()
    x = torch.randn(2, 2, 3, 3)

    def call(group):
        return batch_norm(group, x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    assert all(torch.equal(y, norm(x)) for y in in_group(2, call))
