import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from compresskd.quant.activation import ActivationQuant, calibrate
from compresskd.quant.fake_quantize import FakeQuant
from compresskd.quant.granularity import PerChannel, PerGroup, PerRankSlice, PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, quantize_tensor
from compresskd.quant.prepare import (
    QuantSpec,
    convert,
    disable,
    enable,
    find_targets,
    freeze,
    plain_state_dict,
    prepare,
)


class Train(nn.Module):
    """A stand-in for a factorized layer [16 -> 16]: two cores in a list named `cores`."""

    def __init__(self):
        super().__init__()
        self.cores = nn.ParameterList([torch.randn(1, 4, 4, 3) * 0.3, torch.randn(3, 4, 4, 1) * 0.3])

    def forward(self, x):
        w = torch.einsum("amnb,bpqc->mpnq", self.cores[0], self.cores[1]).reshape(16, 16)
        return x @ w.T


class Net(nn.Module):
    """Every kind of layer that is quantized."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.train_layer = Train()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        h = self.embedding(x).view(-1, 1, 4, 4)
        h = self.norm(self.conv(h)).mean(1).flatten(1)
        return self.head(torch.relu(self.train_layer(h)))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(0, 10, (8,), generator=generator), torch.randint(0, 5, (8,), generator=generator))
        for _ in range(count)
    ]


def train(model, optimizer, data):
    model.train()
    losses = []
    for x, y in data:
        with parametrize.cached():
            loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


SPECS = {
    "lsq4": QuantSpec(bits=4),
    "lsq2 slices": QuantSpec(bits=2, core_granularity=PerRankSlice("last")),
    "ste3 mse": QuantSpec(bits=3, estimator="straight_through"),
    "ste8 affine": QuantSpec(bits=8, grid="affine", estimator="straight_through", initial_scale="absmax"),
    "ternary": QuantSpec(bits=2, grid="ternary", core_grid="ternary", granularity=PerTensor()),
    "groups": QuantSpec(bits=4, granularity=PerGroup(8), core_granularity=PerGroup(8), core_grid="symmetric"),
    "activations": QuantSpec(bits=8, activation_bits=8),
    "learned activations": QuantSpec(bits=4, activation_bits=8, grid="affine"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_trained_model_equals_its_packed_reload_bit_for_bit(spec):
    model = net()
    prepare(model, spec)
    train(model, torch.optim.Adam(model.parameters(), 1e-2), batches(25))
    model.eval()
    fresh = net(9)
    missing = fresh.load_state_dict(plain_state_dict(model))
    assert not missing.missing_keys
    for name, tensor in convert(model).items():
        stored = QuantizedTensor.from_bytes(tensor.to_bytes(), tensor.shape, tensor.grid, tensor.granularity)
        with torch.no_grad():
            fresh.get_parameter(name).copy_(stored.dequantize())
        holder, _, key = name.rpartition(".")
        assert torch.equal(getattr(model.get_submodule(holder), key), stored.dequantize())
    if spec.activation_bits is None:
        x = batches(1, seed=5)[0][0]
        assert torch.equal(model(x), fresh.eval()(x))


def test_every_kind_of_layer_is_found_and_named_as_before():
    names = [target.name for target in find_targets(net())]
    assert names == [
        "embedding.weight",
        "conv.weight",
        "train_layer.cores.0",
        "train_layer.cores.1",
        "head.weight",
    ]
    model = net()
    made = prepare(model, QuantSpec(bits=4, layers={"head": 8, "conv": 0}))
    assert list(made) == ["embedding.weight", "train_layer.cores.0", "train_layer.cores.1", "head.weight"]
    assert made["head.weight"].grid == Grid(8)
    assert made["train_layer.cores.0"].grid == Grid(4, "half_integer")
    assert model.conv.weight.unique().numel() == 36


@pytest.mark.parametrize("name", ["lsq4", "ste8 affine", "learned activations"])
def test_checkpoint_and_resume_are_exact(name):
    data = batches(12)
    whole = net()
    prepare(whole, SPECS[name])
    expected = train(whole, torch.optim.Adam(whole.parameters(), 1e-2), data)

    first = net()
    prepare(first, SPECS[name])
    optimizer = torch.optim.Adam(first.parameters(), 1e-2)
    losses = train(first, optimizer, data[:6])
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second = net(7)
    prepare(second, SPECS[name])
    second.load_state_dict(saved[0])
    optimizer = torch.optim.Adam(second.parameters(), 1e-2)
    optimizer.load_state_dict(saved[1])
    losses += train(second, optimizer, data[6:])
    assert losses == expected
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_deep_copy_is_exact_independent_and_keeps_the_marks():
    model = net()
    prepare(model, QuantSpec(bits=4, activation_bits=8))
    train(model, torch.optim.Adam(model.parameters(), 1e-2), batches(3))
    twin = copy.deepcopy(model)
    marks = [p.no_weight_decay for n, p in twin.named_parameters() if n.endswith("log_scale")]
    assert marks == [True] * 9
    before = copy.deepcopy(model.state_dict())
    x = batches(1)[0][0]
    assert torch.equal(model.eval()(x), twin.eval()(x))
    train(twin, torch.optim.Adam(twin.parameters(), 1e-2), batches(3))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_state_survives_disabling_and_freezing_through_a_checkpoint():
    model = net()
    prepare(model, QuantSpec(bits=2))
    disable(model)
    freeze(model)
    other = net()
    prepare(other, QuantSpec(bits=2))
    other.load_state_dict(model.state_dict())
    quant = other.conv.parametrizations.weight[0]
    assert (quant.enabled, quant.frozen) == (False, True)


def test_disabled_is_the_float_model_and_enabled_again_the_rounded_one():
    model, plain = net().eval(), net().eval()
    x = batches(1)[0][0]
    prepare(model, QuantSpec(bits=3))
    rounded = model(x)
    disable(model)
    assert torch.equal(model(x), plain(x))
    enable(model)
    assert torch.equal(model(x), rounded)
    assert not torch.equal(rounded, plain(x))


def test_frozen_scales_stay_while_weights_train():
    model = net()
    made = prepare(model, QuantSpec(bits=4))
    train(model, torch.optim.SGD(model.parameters(), 0.1), batches(2))
    freeze(model)
    scales = {name: quant.scale.clone() for name, quant in made.items()}
    weight = model.head.parametrizations.weight.original.detach().clone()
    train(model, torch.optim.SGD(model.parameters(), 0.1), batches(2))
    assert all(torch.equal(quant.scale, scales[name]) for name, quant in made.items())
    assert not torch.equal(weight, model.head.parametrizations.weight.original)


def test_observed_absmax_scale_follows_the_weights_in_training_only():
    layer = nn.Linear(4, 4)
    spec = QuantSpec(bits=4, estimator="straight_through", initial_scale="absmax")
    quant = prepare(nn.ModuleDict({"layer": layer}), spec)["layer.weight"]
    first = quant.scale.clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(2)
    layer.eval()
    assert layer.weight is not None
    assert torch.equal(quant.scale, first)
    layer.train()
    assert layer.weight is not None
    assert torch.equal(quant.scale, first * 2)


def test_start_sets_scales_and_grid_must_fit():
    model = net()
    core = model.train_layer.cores[0].detach()
    start = quantize_tensor(core * 3, Grid(2, "half_integer"), PerTensor())
    made = prepare(model, QuantSpec(bits=2), start={"train_layer.cores.0": start})
    assert torch.equal(made["train_layer.cores.0"].scale, start.scale)
    with pytest.raises(
        ValueError, match=r"'train_layer\.cores\.0': the start has 2 bits, but 4 are asked for"
    ):
        prepare(net(), QuantSpec(bits=4), start={"train_layer.cores.0": start})


def test_start_may_bring_its_own_kind_of_grid():
    model = net()
    start = quantize_tensor(model.train_layer.cores[0].detach(), Grid(2), PerRankSlice())
    made = prepare(model, QuantSpec(bits=2), start={"train_layer.cores.0": start})
    assert made["train_layer.cores.0"].grid == Grid(2)
    assert made["train_layer.cores.0"].granularity == PerRankSlice()


def test_scale_survives_its_logarithm_for_every_float16():
    scales = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)
    quant = FakeQuant(torch.ones(len(scales), 1), Grid(4), PerChannel(0))
    with torch.no_grad():
        quant.log_scale.copy_(scales.float().log())
    assert torch.equal(quant.scale, scales)


def test_tied_weights_share_one_parametrization():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    made = prepare(model, QuantSpec(bits=4))
    assert list(made) == ["a.weight"]
    for layer in model.values():
        assert layer.parametrizations["weight"][0] is made["a.weight"]
    assert torch.equal(model["a"].weight, model["b"].weight)


@pytest.mark.parametrize("estimator", ["straight_through", "lsq"])
def test_activations_are_rounded_to_256_levels_within_half_a_step(estimator):
    quant = ActivationQuant(estimator=estimator)
    x = torch.rand(64, 50, generator=torch.Generator().manual_seed(0)) * 3 - 1
    for _ in range(25):
        quant(x)
    y = quant.eval()(x)
    assert y.unique().numel() <= 256
    assert (y - x).abs().max() <= quant.scale.float() * 1.01
    assert quant(torch.zeros(1)) == 0


def test_moving_average_of_the_range():
    quant = ActivationQuant(momentum=0.9)
    quant(torch.tensor([-1.0, 2.0]))
    quant(torch.tensor([-2.0, 4.0]))
    torch.testing.assert_close(quant.high, torch.tensor([2.2]))
    torch.testing.assert_close(quant.low, torch.tensor([-1.1]))
    quant.freeze()
    quant(torch.tensor([100.0]))
    torch.testing.assert_close(quant.high, torch.tensor([2.2]))


def test_calibrate_observes_and_touches_nothing_else():
    model = net().eval()
    prepare(model, QuantSpec(bits=8, activation_bits=8))
    before = {k: v.clone() for k, v in model.state_dict().items() if "input_quant" not in k}
    with pytest.raises(RuntimeError, match="call calibrate"):
        model(batches(1)[0][0])
    calibrate(model, [x for x, _ in batches(3)])
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model(batches(1)[0][0]).shape == (8, 5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: QuantSpec(bits=5), "bits: got 5, expected 2, 3, 4, 8"),
        (lambda: QuantSpec(bits=4, layers={"head": 6}), r"layers\.head: got 6, expected 0, 2, 3, 4, 8"),
        (lambda: QuantSpec(grid="integer"), "grid: got 'integer', expected"),
        (
            lambda: QuantSpec(estimator="ste"),
            "estimator: got 'ste', expected",
        ),
        (lambda: QuantSpec(initial_scale="max"), "initial_scale: got 'max', expected mse, absmax"),
        (lambda: QuantSpec(activation_bits=4), "activation_bits: got 4, expected 8"),
        (
            lambda: prepare(net(), QuantSpec(layers={"haed": 4})),
            "layers: got 'haed', expected",
        ),
        (
            lambda: prepare(net(), QuantSpec(granularity=PerRankSlice())),
            r"'embedding\.weight': granularity: PerRankSlice needs a tensor",
        ),
        (lambda: prepare(nn.ReLU(), QuantSpec()), r"^layers: got \{"),
        (lambda: prepare(net(), QuantSpec(layers={"*": 0})), r"^layers: got \{"),
    ],
)
def test_errors_name_their_key(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_module_is_prepared_once():
    model = net()
    prepare(model, QuantSpec())
    with pytest.raises(ValueError, match="is parametrized already"):
        prepare(model, QuantSpec())
