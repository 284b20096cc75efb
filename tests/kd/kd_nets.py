"""Outlines of networks, and objectives around them, that the tests of losses share."""

import torch
import torch.nn.functional as F
from torch import nn

from compresskd.kd.logits import CrossEntropy, SoftTargets
from compresskd.kd.objective import Objective

B, K = 4, 3


class Block(nn.Module):
    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Net(nn.Module):
    """A residual network's outline: conv1, layer1.0, layer2.0, linear; `unused` never runs."""

    def __init__(self, width=4, num_classes=K, depth=1):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.layer1 = nn.Sequential(*[Block(width, width) for _ in range(depth)])
        self.layer2 = nn.Sequential(*[Block(width, width) for _ in range(depth)])
        self.linear = nn.Linear(width, num_classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = F.max_pool2d(self.layer1(self.conv1(x)), 2)
        return self.linear(self.layer2(x).mean(dim=(2, 3)))


class Tokens(nn.Module):
    """A transformer's outline: embed [B, N, C], blocks.0, blocks.1, head."""

    def __init__(self, width=6):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.head = nn.Linear(width, K)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(dim=1))


class Attention(nn.Module):
    """One head of queries, keys and values, by three layers or by one."""

    def __init__(self, width, fused):
        super().__init__()
        self.fused = fused
        names = {"c_attn": 3} if fused else {"query": 1, "key": 1, "value": 1}
        for name, times in names.items():
            self.add_module(name, nn.Linear(width, times * width))

    def forward(self, x):
        q, k, v = (
            self.c_attn(x).chunk(3, dim=-1) if self.fused else (self.query(x), self.key(x), self.value(x))
        )
        return x + F.scaled_dot_product_attention(q, k, v)


class Attending(nn.Module):
    """An encoder's outline: embed [B, 16, C], blocks.N.attention, head."""

    def __init__(self, width=4, depth=2, fused=False):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([nn.Sequential() for _ in range(depth)])
        for block in self.blocks:
            block.add_module("attention", Attention(width, fused))
        self.head = nn.Linear(width, K)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


class Mlp(nn.Module):
    def __init__(self, hidden, num_classes=K):
        super().__init__()
        widths = [64, *hidden, num_classes]
        self.num_layers = len(widths) - 1
        for i in range(self.num_layers):
            self.add_module(f"fc{i + 1}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x):
        x = x.flatten(1)
        for i in range(1, self.num_layers):
            x = F.relu(self.get_submodule(f"fc{i}")(x))
        return self.get_submodule(f"fc{self.num_layers}")(x)


def distilling(alpha=0.7, temperature=4.0):
    return Objective(
        {"cross_entropy": CrossEntropy(1 - alpha), "soft_targets": SoftTargets(alpha, temperature)}
    )


def num_hooks(*models):
    return sum(len(m._forward_hooks) for model in models for m in model.modules())


def step(bound, student, teacher, inputs, targets):
    with bound.attached(student, teacher) as captured:
        with torch.no_grad():
            teacher_view = captured.teacher(teacher(inputs))
        return bound(captured.student(student(inputs)), teacher_view, targets)


def bind(term, student, teacher, inputs):
    return Objective({"cross_entropy": CrossEntropy(), "feature": term}).bind(student, teacher, inputs[:1])
