"""What was evaluated is what is read back, bit for bit: fake-quantize = quantize, pack, store, load, dequantize."""

import random

import pytest
import torch
from hostile import count
from stored_models import GRANULARITIES, GRIDS, TRUST, content, read_back, zoo

from compresskd import artifact
from compresskd.quant.activation import calibrate
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import QuantSpec, prepare

WEIGHTS = {
    "conv.weight", "tt_conv.cores.0", "tt_conv.cores.1", "linear.weight", "tt_linear.cores.0", "tt_linear.cores.1",
    "embedding.weight", "tt_embedding.cores.0", "tt_embedding.cores.1",
}  # fmt: skip
VECTORS = {
    "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "tt_conv.bias", "linear.bias",
    "tt_linear.bias",
}  # fmt: skip
SEEDS = range(count(1, 2))  # x 13 grids x 4 granularities x 9 weights and most of 8 vectors


def prepared(grid, granularity, core_granularity, seed):
    """A network of random values, scales, vectors and inputs, in evaluation mode."""
    choose = random.Random(f"{grid}{granularity}{seed}")
    model = zoo(seed)
    spec = QuantSpec(
        bits=grid.bits,
        grid=grid.kind,
        core_grid=grid.kind,
        granularity=granularity,
        core_granularity=core_granularity,
        estimator=choose.choice(["lsq", "straight_through"]),
        initial_scale=choose.choice(["mse", "absmax"]),
        other_bits=choose.choice([4, 8, 16, 32]),
        activation_bits=choose.choice([8, None]),
    )
    prepare(model, spec)
    x = torch.randn(3, 2, 4, 4)
    if spec.activation_bits:
        calibrate(model, [x])
    return model.eval(), x


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_random_cases_in_all_forms(grid, tmp_path):
    num_cases = 0
    for granularity, core_granularity in GRANULARITIES:
        for seed in SEEDS:
            model, x = prepared(grid, granularity, core_granularity, seed)
            stored = content(model)
            evaluated = {name: _value(model, name).detach() for name in WEIGHTS | VECTORS}
            with torch.inference_mode():
                y = model(x)
            for read in read_back(stored, tmp_path, TRUST):
                for name in WEIGHTS:
                    assert torch.equal(read.tensors[name].dequantize(), evaluated[name]), name
                again = artifact.build(read, trust=TRUST)
                for name, value in evaluated.items():
                    assert torch.equal(_value(again, name), value), (name, granularity, seed)
                with torch.inference_mode():
                    assert torch.equal(again(x), y)
            num_cases += sum(_is_rounded(stored.tensors[name]) for name in evaluated)
    assert num_cases * len(GRIDS) >= count(500, 1000)


def test_content_is_the_same_in_all_forms_down_to_integers_scales_and_description(tmp_path):
    model, _ = prepared(GRIDS[6], *GRANULARITIES[1], seed=0)
    stored = content(model, input_shape=[2, 4, 4])
    for read in read_back(stored, tmp_path, TRUST):
        assert read.about == stored.about
        assert read.architecture == stored.architecture
        assert read.modules == stored.modules
        assert read.tensors.keys() == stored.tensors.keys()
        for name, value in stored.tensors.items():
            same = read.tensors[name]
            assert type(same) is type(value)
            if isinstance(value, QuantizedTensor):
                assert (same.grid, same.granularity) == (value.grid, value.granularity)
                assert torch.equal(same.integers, value.integers)
                assert torch.equal(same.scale, value.scale)
            else:
                assert same.dtype == value.dtype
                assert torch.equal(same, value)


def test_quantized_inputs_come_back_frozen_and_embeddings_have_none(tmp_path):
    model = zoo(0)
    prepare(model, QuantSpec(bits=4, activation_bits=8))
    x = torch.randn(3, 2, 4, 4)
    calibrate(model, [x])
    for read in read_back(content(model.eval()), tmp_path, TRUST):
        assert set(read.activations) == {"conv", "tt_conv", "linear", "tt_linear"}
        again = artifact.build(read, trust=TRUST)
        with torch.inference_mode():
            assert torch.equal(again(x), model(x))
        scale = again.conv.input_quant.scale.clone()
        again.train()(100 * x)
        assert torch.equal(again.conv.input_quant.scale, scale)


def test_a_range_that_was_never_observed_is_not_stored():
    model = zoo(0)
    prepare(model, QuantSpec(bits=4, activation_bits=8))
    with pytest.raises(ValueError, match="'conv': the range of its input was never observed"):
        artifact.content_of(model)


def _is_rounded(value):
    return isinstance(value, QuantizedTensor) or value.dtype == torch.float16


def _value(model, name):
    layer, _, key = name.rpartition(".")
    return getattr(model.get_submodule(layer), key)
