"""A training whose parameters are spread over the processes is that of one that has them all."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from compresskd.data.synthetic import synthetic
from compresskd.distributed.sharding import is_sharded, own_alone, sharded
from compresskd.kd.logits import CrossEntropy
from compresskd.kd.objective import Objective
from compresskd.stages.train_student import Comparison, compared
from compresskd.training import Recipe, fit
from compresskd.training.schedules import constant


class Blocks(nn.Module):
    """Linear layers one after the other, normalized, whose first and last have a weight in common."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3))
        self.first, self.last = nn.Linear(16, 4, bias=False), nn.Linear(16, 4)
        self.last.weight = self.first.weight
        self.frozen = nn.Linear(16, 16).requires_grad_(False)

    def forward(self, x):
        x = self.norm(self.frozen(x.flatten(1)))
        for block in self.blocks:
            x = x + block(x)
        return self.first(x) + self.last(x)


@functools.cache
def start():
    """Threads share one generator: none of them may draw weights."""
    torch.manual_seed(0)
    return Blocks()


@functools.cache
def blobs():
    """34 training samples, and 16 of validation in batches of 6: three of them, one more than there are processes."""
    return synthetic(
        name="synthetic", num_train=50, num_test=20, separation=0.5, data_seed=0, num_classes=4, input_shape=(1, 4, 4),
        validation_fraction=None, validation_count=16, split_seed=0, augmentation=None, augmentation_bank=None,
    )  # fmt: skip


SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True)
RECIPE = Recipe(
    epochs=3, batch_size=8, optimizer=SGD, scheduler=constant,
    gradient_clip=0.5, gradient_accumulation=2, evaluation_batch_size=6, sharding="fsdp",
    checkpoint_seconds=1e-3,
)  # fmt: skip


class Stopped(Exception):
    pass


def trained(recipe, resume=None, stop_at=None):
    """History, weights and last checkpoint of a training, which is left at a checkpoint of that number."""
    model, data, saved = copy.deepcopy(start()), blobs(), []
    before = {name: id(p) for name, p in model.named_parameters()}
    bound = Objective({"labels": CrossEntropy()}).bind(model, None, torch.zeros(1, 1, 4, 4))

    def keep(state):
        saved.append(copy.deepcopy(state))
        if len(saved) == stop_at:
            raise Stopped

    with bound.attached(model) as captured:
        comparison = Comparison("", bound, captured, None)
        loss = lambda m, batch: compared(batch.call(m), batch, data.task, [comparison])  # noqa: E731
        try:
            result = fit(model, data, loss, recipe, seed=3, checkpoint=keep, resume=resume)
        except Stopped:
            return None, None, saved[-1]
    assert before == {name: id(p) for name, p in model.named_parameters()}
    assert type(model) is Blocks
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return [record.row() for record in result.history], weights, saved[-1]


def alike(found, expected):
    for a, b in zip(found[0], expected[0], strict=True):
        assert a["updates"] == b["updates"]
        for key in ("validation_loss", "validation_accuracy", "train_loss"):
            assert a[key] == pytest.approx(b[key], abs=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def one():
    return trained(replace(RECIPE, sharding=None))


@pytest.mark.slow
def test_it_is_that_of_whole_parameters(in_group, one):
    for found in in_group(2, lambda _: trained(RECIPE)):
        alike(found, one)
        assert found[2].keys() == one[2].keys()
        assert found[2]["model"].keys() == one[2]["model"].keys()
    for found in in_group(2, lambda _: trained(replace(RECIPE, sharding=None))):
        alike(found, one)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
def test_its_checkpoint_is_gone_on_from_by_any_number(in_group, one, world):
    saved = in_group(2, lambda _: trained(RECIPE, stop_at=5))[0][2]
    assert 0 < saved["updates"] < one[2]["updates"]
    for found in in_group(world, lambda _: trained(RECIPE, resume=saved)):
        alike(found, one)


@pytest.mark.slow
def test_a_checkpoint_of_whole_parameters_is_gone_on_from(in_group, one):
    saved = trained(replace(RECIPE, sharding=None), stop_at=5)[2]
    for found in in_group(2, lambda _: trained(RECIPE, resume=saved)):
        alike(found, one)


def test_a_process_has_its_part_of_the_parameters_alone(in_group):
    models = [copy.deepcopy(start()) for _ in range(2)]

    def call(group):
        model = models[group.rank]
        group.copy_first([model])
        values = {name: p.detach().clone() for name, p in model.named_parameters()}
        with sharded(model, group) as parts:
            assert is_sharded(parts)
            assert not is_sharded(model)
            assert sum(p.numel() for p in model.parameters()) == 0
            own = sum(p.to_local().numel() for p in parts.parameters())
        for name, p in model.named_parameters():
            assert torch.equal(p, values[name])
        return own, [own_alone([*parts.parameters()]), own_alone([*model.parameters()])]

    found = in_group(2, call)
    assert sum(own for own, _ in found) == sum(p.numel() for p in models[0].parameters())
    assert all(own > 0.4 * sum(p.numel() for p in models[0].parameters()) for own, _ in found)
    assert all(alone == [[], [*models[rank].parameters()]] for rank, (_, alone) in enumerate(found))
