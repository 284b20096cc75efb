"""A training of several processes is that of one, and so is an evaluation."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from compresskd.data.share import Share
from compresskd.data.synthetic import synthetic
from compresskd.data.text.blocks import python_docs
from compresskd.kd.logits import CrossEntropy
from compresskd.kd.objective import Objective
from compresskd.stages.train_student import Comparison, compared
from compresskd.tasks import CausalLM
from compresskd.training import Recipe, evaluate, fit
from compresskd.training.schedules import constant


@pytest.fixture(scope="module")
def blobs():
    """34 training samples: batches of 8 leave two, fewer than three processes."""
    return synthetic(
        name="synthetic", num_train=50, num_test=20, separation=0.5, data_seed=0, num_classes=4, input_shape=(1, 8, 8),
        validation_fraction=None, validation_count=16, split_seed=0, augmentation=None, augmentation_bank=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokens():
    return python_docs(
        name="python_docs", tokenizer="characters", block_size=8, num_validation=8, num_test=8, test_fraction=0.1,
        validation_fraction=0.1, cache_dir=None, max_in_memory_bytes=2**28,
    )  # fmt: skip


def recipe(**changes):
    optimizer = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    return Recipe(epochs=2, batch_size=8, optimizer=optimizer, scheduler=constant, **changes)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))


def loss_for(task):
    objective = Objective({"labels": CrossEntropy()})
    with objective.bind(nn.Identity(), None, torch.zeros(1)).attached(nn.Identity()) as captured:
        comparison = Comparison("", objective.bind(nn.Identity(), None, torch.zeros(1)), captured, None)
    return lambda model, batch: compared(batch.call(model), batch, task, [comparison])


@pytest.mark.parametrize(
    "changes",
    [{}, {"mixup": 0.4}, {"gradient_accumulation": 2}, {"ema": 0.9, "gradient_clip": 0.5}],
    ids=["plain", "mixup", "accumulated", "averaged and clipped"],
)
def test_a_training_is_that_of_one_process(in_group, blobs, changes):
    start = convolutional()

    def trained(_=None):
        model = copy.deepcopy(start)  # threads share one generator: none of them may draw weights
        return fit(model, blobs, loss_for(blobs.task), recipe(**changes), seed=3), model.state_dict()

    one, weights = trained()
    for result, found in in_group(3, trained):
        torch.testing.assert_close(found, weights, rtol=1e-3, atol=1e-4)
        for a, b in zip(result.history, one.history, strict=True):
            assert a.updates == b.updates
            assert a.validation == pytest.approx(b.validation, abs=1e-4)
            assert a.train == pytest.approx(b.train, abs=1e-4)


def test_a_training_on_tokens_is_that_of_one_process(in_group, tokens):
    size = int(tokens.num_classes)
    data = replace(tokens, task=CausalLM(), train=tokens.train.take(torch.arange(42), "few"))

    class Bigrams(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rows = nn.Embedding(size, size)

        def forward(self, input_ids, attention_mask=None):
            return self.rows(input_ids)

    start = Bigrams()

    def trained(_=None):
        model = copy.deepcopy(start)
        result = fit(model, data, loss_for(data.task), recipe(gradient_accumulation=2), seed=3)
        return result.history[-1].validation, result.history[-1].train, model.state_dict()

    validation, train, weights = trained()
    for found in in_group(2, trained):
        assert found[0] == pytest.approx(validation, abs=1e-5)
        assert found[1] == pytest.approx(train, abs=1e-5)
        torch.testing.assert_close(found[2], weights)


def test_an_evaluation_has_each_sample_once_and_the_same_bits(in_group, blobs):
    model = convolutional()
    one = evaluate(model, blobs.validation, batch_size=5, with_logits=True)
    models = [copy.deepcopy(model) for _ in range(3)]
    for found in in_group(
        3, lambda group: evaluate(models[group.rank], blobs.validation, batch_size=5, with_logits=True)
    ):
        assert found.values == one.values
        assert torch.equal(found.predictions, one.predictions)
        assert torch.equal(found.targets, one.targets)
        assert torch.equal(found.logits, one.logits)


def test_more_processes_than_batches_of_an_evaluation(in_group, blobs):
    models = [convolutional() for _ in range(3)]
    one = evaluate(models[0], blobs.validation, batch_size=16)
    for found in in_group(3, lambda group: evaluate(models[group.rank], blobs.validation, batch_size=16)):
        assert found.values == one.values


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_slices_of_the_same_batches(blobs, tokens, world):
    for split in (blobs.train, tokens.train.take(torch.arange(11), "few")):
        whole = list(split.batches(5, epoch=1, seed=4))
        shares = [list(split.shared(Share(rank, world), 5, epoch=1, seed=4)) for rank in range(world)]
        for batch, *parts in zip(whole, *shares, strict=True):
            if len(batch) < world:
                assert all(torch.equal(part.index, batch.index) and part.share_of is None for part in parts)
                continue
            assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
            assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
            assert {len(part) for part in parts} <= {len(batch) // world, len(batch) // world + 1}
            assert world == 1 or all(part.num_together == len(batch) for part in parts)
