"""Layers of other packages and of other dimensions: right in every form, or named with the reason."""

from importlib.util import find_spec

import pytest
import small_architectures
import torch
from torch import nn

import compresskd
from compresskd import artifact, layers, measure, tt
from compresskd.artifact.content import tied
from compresskd.export.dense import fold
from compresskd.layers import surgery
from compresskd.measure.coverage import coverage, uncovered
from compresskd.models.build import build
from compresskd.quant.prepare import QuantSpec, convert, frozen, prepare

TRUST = ("small_architectures",)
FULL = 10**6


def make(name):
    if name.startswith("timm_") and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return build("small_architectures.build", {"name": name}, seed=0).eval()


def answer(model, name):
    with torch.no_grad():
        return model(small_architectures.inputs(name))


def compressed(model, name, **options):
    return compresskd.compress(model, small_architectures.inputs(name), method="svd", **options)


SLOW = ["bart", "timm_nfnet"]
NAMES = [
    "bert", "gpt2", "t5", "timm_resnet18", "timm_vit", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)
]  # fmt: skip


def may_be_left(layer):
    """Positions of BART, which have an offset, and grouped convolutions."""
    return "embed_positions" in layer.name or getattr(layer.module, "groups", 1) > 1


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", NAMES)
class TestArchitectures:
    def test_nothing_changes_at_full_rank_and_all_layers_take_part(self, name):
        model = make(name)
        full = compressed(model, name, rank=FULL, keep_larger=True)
        torch.testing.assert_close(answer(full, name), answer(model, name), rtol=1e-4, atol=1e-5)
        left = [layer for layer in layers.find(full) if not layers.is_factorized(layer.module)]
        assert all(may_be_left(layer) for layer in left)

    @pytest.mark.slow
    def test_rank_and_bits_are_stored_once_and_read_back_equal(self, name, tmp_path):
        model = make(name)
        small = compressed(model, name, rank=4)
        assert measure.num_parameters(small) < measure.num_parameters(model)
        small = compresskd.quantize(
            small, small_architectures.inputs(name), bits=4, core_start="nearest"
        ).eval()
        content = artifact.content_of(small)
        artifact.folder.write(content, tmp_path)
        artifact.write_compact(content, tmp_path / "model.ckd", trust=TRUST)
        for path in (tmp_path, tmp_path / "model.ckd"):
            read = artifact.load(path, trust=TRUST)
            assert torch.equal(answer(read, name), answer(small, name))
            assert tied(read.state_dict(keep_vars=True)).keys() == tied(content.tensors).keys()

    def test_whatever_is_left_in_floating_point_is_named_with_its_share(self, name):
        model = compresskd.quantize(make(name), small_architectures.inputs(name), bits=4)
        content = artifact.content_of(model)
        found = coverage(artifact.build(content, trust=TRUST), content.tensors, {})
        matrices = {n: each for n, each in found.items() if each["bits"] > 4 and each.get("is_matrix")}
        assert all(each["reason"] for each in matrices.values())
        assert uncovered(found) == {}
        # the trial refuses to round the last convolution of each stage of the nfnet: in training it is off by 2e-4
        most = 0.3 if name == "timm_nfnet" else 0.1
        assert sum(each["share"] for each in matrices.values()) < most


@pytest.mark.filterwarnings("ignore")
class TestTies:
    def test_one_table_serves_both_ends(self):
        model = make("gpt2")
        small = compressed(model, "gpt2", rank=4)
        table, head = small.model.transformer.wte, small.model.lm_head
        assert isinstance(table, tt.TTEmbedding)
        assert isinstance(head, tt.TTLinear)
        assert table.cores is head.cores
        assert measure.num_parameters(model) == sum(p.numel() for p in model.parameters())

    def test_a_scaled_embedding_shares_the_table_without_its_scale(self):
        full = compressed(make("bart"), "bart", rank=FULL, keep_larger=True)
        table, head = full.model.model.encoder.embed_tokens, full.model.lm_head
        assert table.scale == pytest.approx(32**0.5)
        assert table.cores is head.cores
        torch.testing.assert_close(table.to_dense(), head.to_dense())
        ids = torch.tensor([[5, 7]])
        torch.testing.assert_close(table(ids), head.to_dense()[ids] * 32**0.5)

    def test_folding_gives_back_the_layers_of_before(self):
        for name in ("gpt2", "bart"):
            full = compressed(make(name), name, rank=4).eval()
            folded = fold(full)
            assert not surgery.structure(folded)
            torch.testing.assert_close(answer(folded, name), answer(full, name), rtol=1e-4, atol=1e-4)

    def test_frozen_stays_frozen(self):
        model = make("bert")
        model.model.bert.encoder.layer[0].requires_grad_(False)
        small = compressed(model, "bert", rank=4)
        assert frozen(small)
        assert all(name.startswith("model.bert.encoder.layer.0.") for name in frozen(small))


@pytest.mark.filterwarnings("ignore")
def test_a_transposed_weight_has_a_scale_for_each_output():
    model = make("gpt2")
    weight = model.model.transformer.h[0].mlp.c_fc.weight
    prepare(model, QuantSpec(bits=4))
    stored = convert(model)["model.transformer.h.0.mlp.c_fc.weight"]
    assert list(stored.scale.shape) == [weight.shape[1]]


@pytest.mark.filterwarnings("ignore")
def test_a_standardized_weight_cannot_be_folded_back_and_says_so():
    full = compressed(make("timm_nfnet"), "timm_nfnet", rank=FULL, keep_larger=True)
    with pytest.raises(Exception, match="which computes its weight; export the factorized model"):
        fold(full.eval())


class TestOneDimension:
    @pytest.mark.parametrize("method", ["tensor_train", "svd", "tucker", "cp"])
    @pytest.mark.parametrize(
        "options",
        [
            {"kernel_size": 3},
            {"kernel_size": 5, "stride": 2, "padding": 2},
            {"kernel_size": 3, "dilation": 2, "padding": "same", "bias": False},
            {"kernel_size": 4, "padding": 3, "padding_mode": "circular"},
        ],
        ids=["plain", "strided", "dilated", "circular"],
    )
    def test_is_the_convolution_of_its_kernel(self, method, options):
        dense = nn.Conv1d(12, 16, **options)
        rank = 6 if method == "cp" else FULL
        layer = tt.factorize(dense, rank=rank, method=method, keep_larger=True)
        assert layer.dense_shape == dense.weight.shape == layer.to_dense().shape
        again = tt.ordinary(layer)
        assert type(again) is nn.Conv1d
        for x in (torch.randn(3, 12, 20), torch.randn(12, 20)):
            torch.testing.assert_close(layer(x), again(x), rtol=1e-4, atol=1e-4)
            if method != "cp":
                torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-4)

    def test_is_built_again_from_its_structure(self):
        layer = tt.factorize(nn.Conv1d(12, 16, 3, padding=1), rank=4)
        again = tt.from_structure(layer.structure())
        again.load_state_dict(layer.state_dict())
        x = torch.randn(2, 12, 9)
        assert torch.equal(again(x), layer(x))


def test_a_description_of_a_weight_is_no_tensor():
    layer = tt.factorize(nn.Linear(64, 64), rank=4)
    assert layer.weight.dtype == torch.float32
    assert layer.weight.shape == (64, 64)
    with pytest.raises(TypeError):
        torch.nn.functional.linear(torch.randn(2, 64), layer.weight)


class WrongStandardized(nn.Conv2d):
    """Is registered with a plain form that forgets the scale."""

    def forward(self, x):
        return nn.functional.conv2d(x, 2 * self.weight, self.bias, padding=1)


def test_a_plain_form_that_computes_otherwise_is_found_by_the_trial(monkeypatch):
    def as_plain(layer):
        convolution = nn.Conv2d(16, 16, 3, padding=1)
        convolution.weight, convolution.bias = nn.Parameter(layer.weight.detach()), layer.bias
        return convolution

    monkeypatch.setattr("compresskd.layers.registry._registered", {})
    layers.register(WrongStandardized, as_plain)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), WrongStandardized(16, 16, 3, padding=1))
    small = compresskd.compress(model, torch.randn(2, 3, 8, 8), rank=FULL, keep_larger=True)
    assert type(small[1]) is WrongStandardized
    assert isinstance(small[0], tt.TTConv2d)
