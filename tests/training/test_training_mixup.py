"""Mixup by its formula, and in the loop."""

import pytest
import torch
import torch.nn.functional as F

from compresskd.tasks import Batch
from compresskd.training import LossOutput
from compresskd.training.mixup import mixing_weight, mixup


@pytest.mark.parametrize("size", [1, 4, 5])
def test_inputs_and_targets_are_mixed_alike(size):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 2, 3, generator=generator)
    targets = torch.arange(size) % 3
    original = inputs.clone()
    mixed = mixup(Batch(inputs, targets, torch.arange(size), view=0), 0.7, num_classes=3)
    for i in range(size):
        j = size - 1 - i
        assert torch.allclose(mixed.inputs[i], 0.7 * original[i] + 0.3 * original[j], atol=1e-6)
        expected = 0.7 * F.one_hot(targets[i], 3) + 0.3 * F.one_hot(targets[j], 3)
        assert torch.allclose(mixed.targets[i], expected)
    assert torch.equal(inputs, original)
    assert mixed.view == -1


def test_weights_follow_the_beta_distribution_and_their_place():
    draws = torch.tensor([mixing_weight(0.4, seed=0, epoch=0, step=step) for step in range(4000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws.var().item() == pytest.approx(0.25 / 1.8, abs=0.01)  # 1 / (4 (2 alpha + 1))
    assert mixing_weight(0.4, seed=0, epoch=1, step=7) == mixing_weight(0.4, seed=0, epoch=1, step=7)
    assert (
        len({mixing_weight(0.4, seed=s, epoch=e, step=t) for s in (0, 1) for e in (0, 1) for t in (0, 1)})
        == 8
    )


def test_the_loss_gets_float_targets_and_accuracy_is_of_the_heavier_class(train, make_recipe):
    seen = []

    def perfect(model, batch):
        seen.append(batch)
        assert batch.targets.sum(dim=1).allclose(torch.ones(len(batch.targets)))
        return LossOutput(F.cross_entropy(model(batch.inputs), batch.targets), {}, batch.targets)

    _, result = train(recipe=make_recipe(mixup=0.2, epochs=1), loss=perfect)
    assert {batch.view for batch in seen} == {-1}
    assert {batch.targets.dtype for batch in seen} == {torch.float32}
    assert result.history[0].train["accuracy"] == 1.0
