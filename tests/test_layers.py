"""Which layers may take another form, how they are named, and what stays frozen."""

import pytest
import torch
from hard_modules import EXPECTED, TransposedLinear
from refusals import says
from torch import nn

from compresskd import artifact, layers, tt
from compresskd.artifact import thaw
from compresskd.compression.compression import NothingCompressed
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.replacement import carry_out
from compresskd.compression.size import Size
from compresskd.layers import surgery
from compresskd.measure.coverage import coverage, uncovered
from compresskd.models.build import build
from compresskd.quant.prepare import QuantSpec, frozen, prepare
from compresskd.quant.targets import find_targets, unquantized
from compresskd.stages import Compression


def make(name):
    return build("hard_modules.build", {"name": name}, seed=0)


def factorized(model, rank=3):
    chosen = {layer.name: layer.module for layer in layers.find(model) if layer.obstacle is None}
    return carry_out(model, plan_layers(chosen, Size(rank), Method("svd", None, {}), model, lambda _: 0.0))


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - {"grouped"}))
def test_what_may_not_be_replaced_says_why(name):
    found = {layer.name: layer.obstacle for layer in layers.find(make(name)) if layer.obstacle}
    assert found.keys() == EXPECTED[name].keys()
    for layer, words in EXPECTED[name].items():
        assert words in found[layer]


def test_every_name_of_a_shared_module_counts():
    model = make("shared")
    (layer,) = [layer for layer in layers.find(model) if layer.name == "mid"]
    assert layer.names == ("mid", "twin")
    with pytest.raises(NothingCompressed):
        Compression(rank=2, include=["mid"], exclude=["twin"]).check(model, torch.zeros(2, 64))


def test_both_names_lead_to_the_same_replacement():
    model = make("repeated")
    replaced = factorized(model)
    assert model.blocks[0][0] is model.blocks[1][0] is model.inner
    assert list(replaced.layers) == ["blocks.0.0", "out"]
    assert surgery.structure(model).keys() == {"blocks.0.0", "out"}


@pytest.mark.parametrize(
    "name", ["plain", "tied", "languagemodel", "shared", "normalized", "frozen", "padded"]
)
def test_what_was_replaced_can_be_put_back(name):
    model, original = make(name).eval(), make(name).eval()
    replaced = factorized(model)
    for each in list(replaced.replacements):
        replaced.put_back(model, each, "it answers otherwise in its place")
    assert not surgery.structure(model)
    assert set(replaced.skipped.values()) >= {"it answers otherwise in its place"}
    x = torch.randn(3, 64)
    assert torch.equal(model(x), original(x))
    assert frozen(model) == frozen(original)


def test_registered_with_a_form_of_its_own(monkeypatch):
    def as_plain(layer):
        linear = nn.Linear(*layer.weight.shape)
        linear.weight, linear.bias = nn.Parameter(layer.weight.detach().t()), layer.bias
        return linear

    monkeypatch.setattr("compresskd.layers.registry._registered", {})
    layers.register(TransposedLinear, as_plain)
    model, original = make("transposed"), make("transposed")
    chosen = {"mid": model.mid}
    how = Method("tensor_train", None, {}, keep_larger=True)
    carry_out(model, plan_layers(chosen, Size(10**6), how, model, lambda _: 0.0))
    assert isinstance(model.mid, tt.TTLinear)
    x = torch.randn(3, 64)
    torch.testing.assert_close(model(x), original(x), rtol=1e-4, atol=1e-4)


def test_registering_what_is_no_plain_layer_needs_its_form():
    with pytest.raises(ValueError, match=says("register", "LSTM", "nn.Linear")):
        layers.register(nn.LSTM)


class TestFrozen:
    def test_stays_frozen_when_factorized_and_read_back(self, tmp_path):
        model = make("frozen")
        factorized(model)
        assert frozen(model) == ["mid.bias", "mid.cores.0", "mid.cores.1"]
        artifact.save(model, tmp_path / "model")
        assert frozen(artifact.load(tmp_path / "model", trust=("hard_modules",))) == frozen(model)

    @pytest.mark.parametrize("estimator", ["lsq", "straight_through"])
    @pytest.mark.parametrize("form", ["dense", "factorized"])
    def test_training_with_rounded_weights_moves_nothing_of_it(self, form, estimator):
        model = make("frozen")
        if form == "factorized":
            factorized(model)
        prepare(model, QuantSpec(bits=4, estimator=estimator, other_bits=8))
        before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().sum().backward()
            optimizer.step()
        after = model.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("mid."))
        assert any(not torch.equal(after[k], v) for k, v in before.items() if k.startswith("inp."))

    def test_a_copy_of_a_frozen_teacher_thaws_to_what_it_was_built_as(self):
        assert frozen(thaw(make("frozen").requires_grad_(False))) == ["mid.weight", "mid.bias"]
        factorized_model = make("frozen")
        factorized(factorized_model)
        assert frozen(thaw(factorized_model.requires_grad_(False))) == [
            "mid.bias",
            "mid.cores.0",
            "mid.cores.1",
        ]

    def test_a_bias_alone(self):
        model = make("frozenbias")
        factorized(model)
        assert frozen(model) == ["mid.bias"]


@pytest.mark.parametrize("name", ["normalized", "spectral", "ownparametrization"])
def test_parametrized_weights_are_stored_and_read_back(name, tmp_path):
    model = make(name).train()
    model(torch.randn(4, 64))
    model.eval()
    x = torch.randn(3, 64)
    for prepared in (False, True):
        if prepared:
            prepare(model, QuantSpec(bits=8, other_bits=16))
            assert "mid.weight" not in {target.name for target in find_targets(model)}
            assert "parametrized" in unquantized(model)["mid"]
        content = artifact.content_of(model)
        artifact.folder.write(content, tmp_path)
        artifact.write_compact(content, tmp_path / "model.ckd", trust=("hard_modules",))
        for path in (tmp_path, tmp_path / "model.ckd"):
            loaded = artifact.load(path, trust=("hard_modules",))
            with torch.no_grad():
                torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("upsampling", "up", "ConvTranspose2d has no factorized form"),
        ("recurrent", "rnn", "LSTM has no factorized form"),
        ("transposed", "mid", "TransposedLinear has no factorized form"),
        ("bare", "(model)", "Bare has no factorized form"),
    ],
)
@pytest.mark.parametrize("bits", [None, 4])
def test_every_module_with_weights_is_named(name, module, words, bits):
    model = make(name).eval()
    if bits is not None:
        prepare(model, QuantSpec(bits=bits, other_bits=16))
    content = artifact.content_of(model)
    read = artifact.build(content, trust=("hard_modules",))
    found = coverage(read, content.tensors, {})
    assert words in found[module]["reason"]
    assert found[module]["bits"] == (16 if bits and name != "recurrent" else 32)
    assert sum(each["share"] for each in found.values()) == pytest.approx(1)
    assert module in uncovered(found)
    holders = {
        n or "(model)" for n, m in read.named_modules() if any(p.numel() for p in m.parameters(recurse=False))
    }
    assert holders <= found.keys()
    assert found["out"]["bits"] == (bits or 32)


@pytest.mark.parametrize("bits", [None, 4])
def test_projections_inside_attention_are_quantized_and_named_where_they_are_not(bits):
    model = make("attending").eval()
    if bits is not None:
        prepare(model, QuantSpec(bits=bits, other_bits=16))
    content = artifact.content_of(model)
    found = coverage(artifact.build(content, trust=("hard_modules",)), content.tensors, {})["attention"]
    assert found["bits"] == (bits or 32)
    assert ("nn.MultiheadAttention" in found.get("reason", "")) == (bits is None)


def test_many_small_matrices_of_one_kind_are_as_much_as_one_large_one():
    each = {"kind": "Strange", "share": 0.03, "is_matrix": True, "covered": False}
    found = {str(k): each for k in range(20)} | {"other": each | {"kind": "Other"}}
    assert uncovered(found) == {str(k): 0.03 for k in range(20)}


def test_tied_bytes_are_counted_in_their_first_module():
    model = make("tied")
    content = artifact.content_of(model)
    found = coverage(model, content.tensors, {})
    assert found["mid"]["bytes"] - found["twin"]["bytes"] == 4 * 64 * 64
    assert found["twin"]["weights_of"] == "mid"


def test_lazy_layers_are_refused_when_built():
    with pytest.raises(ValueError, match="the shape of weight, bias is not known before data come"):
        build("torch.nn.LazyLinear", {"out_features": 3}, seed=0)
