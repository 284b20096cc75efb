"""The stage alone, on networks as they are built: what flows on, what is frozen, what is stored of it."""

import functools
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from refusals import says

from compresskd import artifact, tt
from compresskd.engine.strategy import State
from compresskd.kd.logits import CrossEntropy
from compresskd.kd.objective import Objective
from compresskd.models.build import build
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import convert, plain_state_dict
from compresskd.stages import Quantization, Quantize
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


def quantized(context, model=None, **options):
    defaults = {"bits": 4, "core_start": "nearest", "epochs": 1}
    how = Quantization(**(defaults | options)).wanted(None)
    model = resnet() if model is None else model
    context.details.clear()
    return Quantize(how, OBJECTIVE, epochs=1)(State(model), context).student


OPTIONS = {
    "trained": {},
    "rounded only": {"mode": "ptq"},
    "straight through": {"estimator": "straight_through"},
    "folded": {"batch_norm": "fold"},
    "vectors of 8 bits": {"other_bits": 8},
    "vectors of 32 bits": {"other_bits": 32},
    "activations": {"activation_bits": 8},
    "affine groups": {"grid": "affine", "granularity": 16, "core_granularity": "rank_slice"},
}


@pytest.mark.slow
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


def values(model):
    return torch.cat([value.double().flatten() for value in plain_state_dict(model).values()])


ALWAYS = {"epochs": 2}
CHANGES = {
    "bits": ({}, {"bits": 3}),
    "mode": ({}, {"mode": "ptq"}),
    "layers": ({}, {"layers": {"conv1": 2}}),
    "grid": ({}, {"grid": "half_integer"}),
    "granularity": ({}, {"granularity": "tensor"}),
    "core_grid": ({"core_grid": "symmetric"}, {"core_grid": "half_integer"}),
    "core_granularity": ({}, {"core_granularity": "rank_slice"}),
    "core_start": ({}, {"core_start": "gauge"}),
    "least squares": ({"core_start": "gauge"}, {"core_start": "gauge_als"}),
    "data_aware": ({"core_start": "gauge"}, {"core_start": "gauge", "data_aware": True}),
    "estimator": ({}, {"estimator": "straight_through"}),
    "initial_scale": ({}, {"initial_scale": "absmax"}),
    "rounding": ({}, {"rounding": "gptq"}),
    "activation_bits": ({}, {"activation_bits": 8}),
    "num_calibration": ({"activation_bits": 8}, {"activation_bits": 8, "num_calibration": 4}),
    "other_bits": ({}, {"other_bits": 8}),
    "batch_norm=freeze": ({"freeze_fraction": 0.5}, {"freeze_fraction": 0.5, "batch_norm": "freeze"}),
    "batch_norm=fold": ({}, {"batch_norm": "fold"}),
    "freeze_fraction": ({}, {"freeze_fraction": 1.0}),
    "entropy": ({}, {"entropy": 0.5}),
    "epochs": ({}, {"epochs": 1}),
    "learning_rate": ({}, {"learning_rate": 1e-4}),
    "budget": ({}, {"budget": 0.1, "bits": None}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_every_option_changes_what_comes_out(context, before, after):
    one, two = (values(quantized(context, **(ALWAYS | options))) for options in (before, after))
    assert one.shape != two.shape or not torch.equal(one, two)


@pytest.mark.slow
def test_what_comes_out_is_a_function_of_the_seed(context):
    one, two = (values(quantized(context, core_start="gauge_als")) for _ in range(2))
    assert torch.equal(one, two)


def test_a_layer_at_zero_bits_stays_in_float_and_is_told(context):
    model = quantized(context, layers={"linear": 0, "conv1": 8})
    stored = convert(model)
    assert "linear.weight" not in stored
    assert stored["conv1.weight"].grid.bits == 8
    assert stored["layer2.0.conv1.weight"].grid.bits == 4
    assert context.details["skipped"] == {"linear": "left in floating point by quant.layers"}
    assert context.details["layers"]["layer3.0.conv2"]["kind"] == "TTConv2d"


def test_vectors_are_stored_as_half_precision(context):
    stored = convert(quantized(context))
    vectors = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    assert {"bn1.weight", "bn1.running_var", "linear.bias"} <= vectors.keys()
    assert {value.dtype for value in vectors.values()} == {torch.float16}
    fewer = convert(quantized(context, other_bits=8))
    assert {n for n, v in fewer.items() if isinstance(v, torch.Tensor)} == {
        n for n in vectors if "running" in n
    }


@pytest.mark.parametrize(("batch_norm", "renewed"), [("freeze", False), ("keep", True)])
def test_statistics_stop_late(context, batch_norm, renewed):
    model, seen = resnet(), []
    how = Quantization(bits=4, core_start="nearest", batch_norm=batch_norm, freeze_fraction=0.5)
    context.save_training = lambda state: seen.append(state["model"]["bn1.num_batches_tracked"].clone())
    Quantize(how, OBJECTIVE, epochs=4)(State(model), context)
    assert len(set(seen)) > 0
    counts = [int(count) for count in seen]
    assert (counts[-1] > counts[1]) is renewed
    assert counts[1] == 2 * context.data.train.num_batches(16)


def test_scales_stop_late(context):
    model, seen = resnet(), []
    context.save_training = lambda state: seen.append(
        state["model"]["conv1.parametrizations.weight.0.log_scale"].clone()
    )
    Quantize(Quantization(bits=4, core_start="nearest", freeze_fraction=0.5), OBJECTIVE, epochs=4)(
        State(model), context
    )
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[3])


def test_folded_norms_are_counted_and_gone(context):
    model = quantized(context, batch_norm="fold")
    assert context.details["folded_batch_norms"] == 7
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


@pytest.mark.slow
class TestBudget:
    @pytest.mark.parametrize("budget", [13_000, 22_000, 0.12])
    @pytest.mark.parametrize(
        "options",
        [{}, {"batch_norm": "fold", "activation_bits": 8}, {"rounding": "gptq"}],
        ids=["", "folded", "gptq"],
    )
    def test_the_file_fits(self, context, budget, options):
        model = quantized(context, bits=None, budget=budget, mode="ptq", **options)
        told = context.details["budget"]
        content = replace(artifact.content_of(model), about=artifact.about_of(context.data))
        sizes = artifact.compact_sizes(content)
        assert sizes["file_bytes"] == told["chosen_bytes"] <= told["bytes"]
        assert sizes["file_bytes"] > 0.95 * told["bytes"]
        assert sizes["packed_bytes"] > 1.02 * sizes["file_bytes"]  # what coding saves is spent as well

    def test_before_training_the_file_counts_as_it_is_without_coding(self, context):
        model = quantized(context, bits=None, budget=22_000, mode="qat")
        content = replace(artifact.content_of(model), about=artifact.about_of(context.data))
        assert 0.95 * 22_000 < artifact.compact_sizes(content)["packed_bytes"] <= 22_000

    def test_what_takes_more_than_the_table_says_is_chosen_anew(self, context, monkeypatch):
        monkeypatch.setattr("compresskd.compression.precision_table.saved_by_coding", lambda tensors: 4000)
        quantized(context, bits=None, budget=22_000, mode="ptq")
        assert 0.9 * 22_000 < context.details["budget"]["chosen_bytes"] <= 22_000

    @pytest.mark.parametrize(("num_samples", "told"), [(16, False), (46, True), (512, True)])
    def test_where_no_samples_are_left_for_lower_ranks_it_says_so(self, context, capsys, num_samples, told):
        quantized(context, bits=None, budget=22_000, mode="ptq", num_calibration=num_samples)
        assert ("calibration takes all training samples" in capsys.readouterr().out) == told

    def test_more_bytes_lose_less(self, context):
        x = next(iter(context.data.train.batches(64))).inputs
        exact = resnet().eval()(x).detach()
        errors = []
        for budget in (12_500, 18_000, 30_000):
            model = quantized(context, bits=None, budget=budget, mode="ptq").eval()
            errors.append(float((model(x).detach() - exact).norm() / exact.norm()))
        assert errors == sorted(errors, reverse=True)
        assert errors[2] < 0.7 * errors[0]

    def test_errors_count_by_what_comes_after_them_where_that_is_asked_for(self, context):
        chosen = {"input": [], "two_sided": []}
        for whitening, budget in itertools.product(chosen, (14_000, 22_000)):
            model = quantized(context, whitening=whitening, bits=None, budget=budget, mode="ptq")
            assert context.details["budget"]["chosen_bytes"] <= budget
            assert torch.isfinite(values(model)).all()
            stored = convert(model).items()
            chosen[whitening] += [
                (name, tuple(t.shape), t.grid.bits) for name, t in stored if isinstance(t, QuantizedTensor)
            ]
        assert chosen["input"] != chosen["two_sided"]
        with pytest.raises(ValueError, match=says("whitening", "input without a budget")):
            Quantization(bits=4, whitening="two_sided")

    def test_patterns_keep_what_they_say(self, context):
        model = quantized(context, bits=None, budget=16_000, layers={"conv1": 8, "linear": 0}, mode="ptq")
        stored = convert(model)
        assert stored["conv1.weight"].grid.bits == 8
        assert "linear.weight" not in stored

    def test_what_cannot_be_is_refused_with_the_least(self, context):
        with pytest.raises(ValueError, match=says("budget", "900")) as raised:
            quantized(context, bits=None, budget=900, mode="ptq")
        least = int(str(raised.value).partition("expected >= ")[2].split()[0].replace(",", ""))
        quantized(context, bits=None, budget=least, mode="ptq")
