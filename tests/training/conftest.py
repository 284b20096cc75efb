import functools
import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compresskd.data.synthetic import synthetic
from compresskd.training import LossOutput, Recipe, fit
from compresskd.training.schedules import constant


@pytest.fixture(scope="session")
def blobs():
    """200 training samples [1, 8, 8] of 4 classes, 40 for validation: 7 steps of 32, the last one short."""
    return synthetic(
        name="synthetic",
        num_train=240,
        num_test=40,
        separation=0.2,
        data_seed=0,
        num_classes=4,
        input_shape=(1, 8, 8),
        validation_fraction=None,
        validation_count=40,
        split_seed=0,
        augmentation=None,
        augmentation_bank=None,
    )


@pytest.fixture
def make_model():
    """Convolution, batch statistics and dropout: all that has state or draws random numbers."""

    def make(seed=0, dropout=0.3):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(144, 4),
        )

    return make


@pytest.fixture
def cross_entropy():
    def loss(model, batch):
        logits = model(batch.inputs)
        total = F.cross_entropy(logits.float(), batch.targets)
        return LossOutput(total, {"cross_entropy": total.detach()}, logits)

    return loss


@pytest.fixture
def make_recipe():
    def make(lr=0.05, momentum=0.9, **changes):
        sgd = functools.partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=1e-3)
        recipe = Recipe(epochs=3, batch_size=32, optimizer=sgd, scheduler=constant)
        return replace(recipe, **changes)

    return make


@pytest.fixture
def train(blobs, make_model, cross_entropy, make_recipe):
    """Train a fresh model; gives the model and the result. Options of the recipe and of `fit` by keyword."""

    def run(*, seed=3, recipe=None, loss=cross_entropy, model=None, data=blobs, **fit_options):
        model = model or make_model()
        return model, fit(model, data, loss, recipe or make_recipe(), seed=seed, **fit_options)

    return run


@pytest.fixture
def keep():
    """A checkpoint callable that keeps what a file would: bytes readable with weights only."""

    class Kept(list):
        def __call__(self, state):
            buffer = io.BytesIO()
            torch.save(state, buffer)
            self.append(buffer.getvalue())

        def read(self, index):
            return torch.load(io.BytesIO(self[index]), weights_only=True)

    return Kept()


@pytest.fixture
def untimed():
    """A history without what the clock says."""

    def strip(history):
        return [replace(record, seconds=0.0, samples_per_second=0.0) for record in history]

    return strip
