"""Tied parameters and shared modules: stored once in every form, read back tied, counted once."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from compresskd import artifact, layers, measure, tt
from compresskd.artifact import compact, folder
from compresskd.artifact.content import tied
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.replacement import carry_out
from compresskd.compression.size import Size
from compresskd.models.build import build
from compresskd.quant.prepare import QuantSpec, prepare

TRUST = ("hard_modules",)
NAMES = [
    "tied",
    "tiedwithbias",
    "tiedbiases",
    "tiedconvolutions",
    "languagemodel",
    "tiedpadding",
    "shared",
    "repeated",
]


def make(name):
    return build("hard_modules.build", {"name": name}, seed=0)


def factorized(model, rank=3):
    chosen = {layer.name: layer.module for layer in layers.find(model)}
    carry_out(model, plan_layers(chosen, Size(rank), Method("tensor_train", None, {}), model, lambda _: 0.0))
    return model


def ties(model):
    return tied(model.state_dict(keep_vars=True))


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("form", ["dense", "factorized"])
@pytest.mark.parametrize("name", NAMES)
def test_stored_once_and_read_back_tied(name, form, bits, tmp_path):
    model = make(name) if form == "dense" else factorized(make(name))
    same, count = ties(model), measure.num_parameters(model)
    assert same
    model.eval()
    if bits is not None:
        prepare(model, QuantSpec(bits=bits, other_bits=16))
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answered = model(x)
    content = artifact.content_of(model)
    assert tied(content.tensors).keys() == same.keys()
    folder.write(content, tmp_path)
    artifact.write_compact(content, tmp_path / "model.ckd", trust=TRUST)
    if bits is None:
        values = (tmp_path / "model.safetensors").stat().st_size
        assert values < 4 * count + 200 * len(content.tensors)
        assert (tmp_path / "model.ckd").stat().st_size < 4 * count + 1000
    for path in (tmp_path, tmp_path / "model.ckd"):
        loaded = artifact.load(path, trust=TRUST)
        assert ties(loaded) == same
        assert measure.num_parameters(loaded) == count
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), answered, rtol=1e-5, atol=1e-5)


def test_a_model_without_ties_has_the_format_of_before(tmp_path):
    content = artifact.content_of(make("plain"))
    folder.write(content, tmp_path)
    assert json.loads((tmp_path / "structure.json").read_text())["format"] == 2
    assert artifact.encode(content, trust=TRUST)[0][3] & 127 == 2


def test_files_that_hold_tied_tensors_twice_are_read(tmp_path, monkeypatch):
    content = artifact.content_of(make("tied"))
    twice = replace(
        content, tensors={k: v.clone() for k, v in content.tensors.items()}
    )  # as versions before wrote them
    folder.write(twice, tmp_path)
    assert json.loads((tmp_path / "structure.json").read_text())["format"] == 2
    assert ties(artifact.load(tmp_path, trust=TRUST)) == {"twin.weight": "mid.weight"}
    monkeypatch.setattr("compresskd.artifact.header.tied", lambda state: {})
    data, _ = artifact.encode(twice, trust=TRUST)
    monkeypatch.undo()
    assert data[3] & 127 == 2
    again = compact.decode(data, trust=TRUST)
    assert torch.equal(again.tensors["twin.weight"], content.tensors["mid.weight"])


def test_values_that_came_apart_are_refused():
    content = artifact.content_of(make("tied"))
    apart = {**content.tensors, "twin.weight": content.tensors["mid.weight"] + 1}
    with pytest.raises(ValueError, match=r"'twin\.weight' has other values than 'mid\.weight'"):
        artifact.encode(replace(content, tensors=apart), trust=TRUST)


@pytest.mark.parametrize("same", [{"out.weight": "mid.weight"}, {"a": "b"}, {"a": "a"}, {"a": 3}])
def test_a_hostile_table_of_ties_is_refused(same, tmp_path):
    folder.write(artifact.content_of(make("tied")), tmp_path)
    path = tmp_path / "structure.json"
    described = json.loads(path.read_text()) | {"tied": same}
    described["sha256"] = folder.digest((tmp_path / "model.safetensors").read_bytes(), described)
    path.write_text(json.dumps(described))
    with pytest.raises(artifact.ArtifactError):
        artifact.load(tmp_path, trust=TRUST)


def test_factors_of_other_shapes_cannot_be_shared():
    model = factorized(make("tied"))
    content = artifact.content_of(model)
    modules = {**content.modules, "twin": {**content.modules["twin"], "weights_of": "out"}}
    with pytest.raises(ValueError, match="tied factors: expected the shapes"):
        artifact.build(replace(content, modules=modules), trust=TRUST)


class TestTwin:
    def test_embedding_and_head_have_the_same_cores(self):
        model = factorized(make("languagemodel"))
        assert isinstance(model.table, tt.TTEmbedding)
        assert isinstance(model.head, tt.TTLinear)
        assert model.table.cores is model.head.cores
        torch.testing.assert_close(model.table.to_dense(), model.head.to_dense())

    def test_a_step_of_training_moves_both(self):
        model = factorized(make("languagemodel")).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(4, 64)).square().sum().backward()
        before = model.head.to_dense().detach().clone()
        optimizer.step()
        assert not torch.equal(model.head.to_dense(), before)
        torch.testing.assert_close(model.table.to_dense(), model.head.to_dense())

    def test_biases_stay_tied(self):
        model = factorized(make("tiedbiases"))
        assert isinstance(model.mid, tt.TTLinear)
        assert model.mid.bias is model.twin.bias

    def test_the_padding_row_gets_no_gradient_from_the_embedding(self):
        model = factorized(make("tiedpadding"))
        assert model.table.padding == "cores"
        model.table(torch.tensor([3, 3])).sum().backward()
        assert all(core.grad is None or not core.grad.any() for core in model.table.cores)


def test_the_kept_padding_row():
    table = nn.Embedding(64, 16, padding_idx=5)
    with torch.no_grad():
        table.weight[5] = 2.0
    layer = tt.factorize(table, rank=2)
    assert torch.equal(layer(torch.tensor([5])), table(torch.tensor([5])))
    assert torch.equal(layer.to_dense()[5], table.weight[5])
    layer(torch.tensor([5])).sum().backward()
    assert all(core.grad is None or not core.grad.any() for core in layer.cores)
    again = tt.from_structure(layer.structure())
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(torch.tensor([5, 6])), layer(torch.tensor([5, 6])))
