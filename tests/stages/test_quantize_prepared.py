"""The stage alone, on networks as they are built: what flows on, what is frozen, what is stored of it."""

import functools
from types import SimpleNamespace

import pytest
import torch

from compresskd import artifact, tt
from compresskd.kd.logits import CrossEntropy
from compresskd.models.build import build
from compresskd.objective import Objective
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.stages import Quantization, Quantize
from compresskd.strategy import State
from compresskd.training import Recipe
from compresskd.training.schedules import cosine

OBJECTIVE = Objective({"cross_entropy": CrossEntropy(1.0)})


@pytest.fixture
def context():
    """What the stage uses of a run's context, around a small set of images."""
    from compresskd.data.synthetic import synthetic

    data = synthetic(
        name="synthetic",
        num_train=64,
        num_test=16,
        separation=1.0,
        data_seed=0,
        num_classes=3,
        input_shape=(3, 16, 16),
        validation_fraction=None,
        validation_count=16,
        split_seed=0,
        augmentation=None,
        augmentation_bank=None,
    )
    recipe = Recipe(
        epochs=1, batch_size=16, optimizer=functools.partial(torch.optim.AdamW, lr=1e-3), scheduler=cosine
    )
    return SimpleNamespace(
        data=data, recipe=recipe, device=torch.device("cpu"), stage="quantize", stage_seed=1, details={},
        example=torch.zeros(1, 3, 16, 16),
        training_state=lambda: None, save_training=lambda state: None,
        run=SimpleNamespace(append_metrics=lambda line: None),
        reporter=SimpleNamespace(note=print, step=lambda progress: None, epoch=lambda epoch, epochs: None),
    )  # fmt: skip


def resnet():
    model = build(
        "compresskd.models.resnet.ResNet", {"depth": 8, "num_classes": 3, "input_shape": [3, 16, 16]}, seed=0
    )
    model.layer3[0].conv2 = tt.factorize(model.layer3[0].conv2, rank=4)
    return model


def mlp():
    model = build(
        "compresskd.models.mlp.MLP",
        {"hidden": [64, 32], "num_classes": 3, "input_shape": [3, 16, 16]},
        seed=0,
    )
    model.fc1 = tt.factorize(model.fc1, rank=4)
    return model


def quantized(context, model=None, *, epochs=1, **options):
    how = Quantization(bits=4, core_start="nearest", **options)
    model = resnet() if model is None else model
    return Quantize(how, OBJECTIVE, epochs)(State(model), context).student


OPTIONS = {
    "trained": {},
    "rounded only": {"mode": "ptq"},
    "straight through": {"estimator": "straight_through"},
    "folded": {"batch_norm": "fold"},
    "vectors of 8 bits": {"vector_bits": 8},
    "vectors of 32 bits": {"vector_bits": 32},
    "activations": {"activation_bits": 8},
    "affine groups": {"grid": "affine", "granularity": 16, "core_granularity": "rank_slice"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("architecture", [resnet, mlp])
def test_a_stored_model_answers_bit_for_bit_as_it_was_evaluated(context, tmp_path, architecture, options):
    model = quantized(context, architecture(), **options).eval()
    artifact.save(model, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    x = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    assert not any(isinstance(m, FakeQuant) for m in loaded.modules())
