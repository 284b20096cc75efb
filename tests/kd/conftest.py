"""A batch that the tests of losses share."""

import pytest
import torch
from kd_nets import B


@pytest.fixture
def inputs():
    return torch.randn(B, 1, 8, 8)


@pytest.fixture
def targets():
    return torch.tensor([0, 1, 2, 1])
