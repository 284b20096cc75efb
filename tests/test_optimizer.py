"""Optimizers without torch's compiler: equal to torch's own, before it is loaded and after."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from compresskd.optimizer import make_optimizer

PROGRAM = """
import sys
import torch
from torch import nn
from compresskd.optimizer import make_optimizer

def trained(make, steps):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.ones(2, 4)
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    kept = optimizer.state_dict()
    optimizer.load_state_dict(kept)
    optimizer.step(lambda: model(x).square().sum())  # a closure runs with gradients, the step without
    return [p.detach() for p in model.parameters()]

kinds = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop]
ours = [trained(lambda p, kind=kind: make_optimizer(kind, p), 3) for kind in kinds]
assert "torch._dynamo" not in sys.modules
torch.compile(nn.Linear(4, 3), backend="eager")(torch.ones(2, 4))
assert "torch._dynamo" in sys.modules
after = [trained(kind, 3) for kind in kinds]
for first, second in zip(ours, after, strict=True):
    assert all(map(torch.equal, first, second))
"""


@pytest.mark.slow
def test_the_compiler_stays_out_until_something_is_compiled_and_nothing_else_changes():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


class OneOfAUser(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, OneOfAUser])
def test_hooks_and_schedules_see_every_step(kind):
    model, calls = nn.Linear(2, 2), []
    optimizer = make_optimizer(kind, model.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()  # warns, which is an error here, where it saw no step
    assert calls == ["before", "after"]
