"""At full rank nothing changes: each hard model, each method, without and with 8 bits, is the same or says why not."""

import pytest
import torch
from hard_modules import EXPECTED, MODELS

from compresskd import artifact, layers, measure
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.replacement import carry_out
from compresskd.compression.size import Size
from compresskd.models.build import build
from compresskd.quant.prepare import QuantSpec, convert, prepare
from compresskd.quant.targets import find_targets, find_vectors

FULL = 10**6


def make(name):
    return build("hard_modules.build", {"name": name}, seed=0)


def factorized(model, method, rank=FULL):
    taken = {layer.name: layer.module for layer in layers.find(model) if layer.obstacle is None}
    how = Method(method, None, {}, keep_larger=True)
    return carry_out(model, plan_layers(taken, Size(rank), how, model, lambda _: 0.0))


def inputs():
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


def outputs(model, training):
    model.train(training)
    with torch.no_grad():
        return model(inputs())


def dense_values(model, name):
    """The model with every factorized layer's weight, multiplied out, in its ordinary layers."""
    plain = make(name)
    state = plain.state_dict()
    for key in state:
        owner, _, last = key.rpartition(".")
        layer = model.get_submodule(owner)
        if layers.is_factorized(layer) and last == "weight":
            state[key] = layer.to_dense().detach()
    plain.load_state_dict(state)
    return plain


def skipped_for(name, method):
    expected = dict(EXPECTED.get(name, {}))
    embeddings = [n for n, m in MODELS[name]().named_modules() if isinstance(m, torch.nn.Embedding)]
    if method in ("tucker", "cp") and embeddings and name != "scaled":
        tied = ["head"] if name in ("languagemodel", "tiedpadding") else []
        expected |= dict.fromkeys([*embeddings, *tied], f"no form of method {method}")
    return expected


@pytest.mark.parametrize("method", ["tensor_train", "svd", "interpolative", "tucker"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_changes_at_full_rank(name, method):
    model, original = make(name), make(name)
    replaced = factorized(model, method)
    expected = skipped_for(name, method)
    assert replaced.skipped.keys() == expected.keys()
    for layer, words in expected.items():
        assert words in replaced.skipped[layer]
    assert replaced.replacements
    for training in (False, True):
        if name == "spectral" and training:
            continue  # the norm iterates at each pass, the effective weight is that of evaluation
        torch.testing.assert_close(
            outputs(model, training), outputs(original, training), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "tensor_train", "svd", "interpolative", "tucker"])
@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_are_those_of_what_is_stored(name, method, tmp_path):
    model = make(name)
    if method is not None:
        factorized(model, method)
    model.eval()
    rounded = prepare(model, QuantSpec(bits=8, other_bits=16))
    answered = outputs(model, False)
    artifact.save(model, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model", trust=("hard_modules",))
    assert torch.equal(outputs(loaded, False), answered)
    assert len(rounded) == len({id(quant) for quant in rounded.values()})
    assert measure.num_parameters(loaded) <= measure.num_parameters(model)
    if method is None:  # the weights of the original, rounded, are those that were evaluated
        original = make(name)
        values, weights = convert(model), find_targets(original)
        vectors = list(find_vectors(original, weights))
        with torch.no_grad():
            for target in weights:
                target.value.copy_(values[target.name].dequantize())
            for target in vectors:
                target.value.copy_(target.value.half())
        torch.testing.assert_close(outputs(original, False), answered, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["plain", "tied", "shared", "tiedconvolutions", "normalized", "frozen", "transposed"]
)
def test_cp_is_the_layer_with_its_reconstructed_weight(name):
    model = make(name)
    factorized(model, "cp", rank=5)
    if name == "normalized":
        return
    torch.testing.assert_close(
        outputs(model, False), outputs(dense_values(model, name), False), rtol=1e-4, atol=1e-4
    )
