"""Every architecture of conf/model comes back from every form with the outputs that it had."""

import pytest
import torch
from hostile import count
from small_models import NAMES, factorize, inputs_of, model_of, needs_vnni, one_of_each, source_of

from compresskd import artifact
from compresskd.export import ExportFailed, export
from compresskd.export.agreement import Agreement, check, compare
from compresskd.export.dense import fold
from compresskd.export.export import report_of
from compresskd.export.samples import Samples
from compresskd.layers import surgery
from compresskd.models.build import build
from compresskd.quant.granularity import PerGroup
from compresskd.quant.prepare import QuantSpec
from compresskd.stages.fold_batch_norm import fold_batch_norms

CLOSE = 1e-6  # of the largest output: float32 in another order


def difference(source, form, folder):
    """Of an export, in proportion to the largest output; at batches of 1 and 32 and a shorter last one."""
    inputs = inputs_of(source)
    found = export(source, form, folder / f"model.{form}", Samples(inputs, "inputs"), timed=False)
    assert found.agreement.num_compared == 16 + 33
    return found.agreement.largest_difference / found.agreement.largest_output


SAME_LAYERS = ("lenet_300_100", "resnet32x4", "wrn_16_1")


def test_no_architecture_is_left_out():
    kinds = {type(model_of(name)).__name__ for name in NAMES}
    assert {type(model_of(name)).__name__ for name in one_of_each()} == kinds
    assert kinds == {"LeNet5", "MLP", "ResNet", "ResNetX4", "TTMLP", "VisionTransformer", "WideResNet"}


# Those that have the same layers as a residual network are here in tensor-train format alone.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in one_of_each() if name not in count(SAME_LAYERS, ())])
def test_architectures_as_they_are(name, tmp_path):
    source = source_of(model_of(name))
    for form in ("onnx", "pt2"):
        assert difference(source, form, tmp_path) < CLOSE, form


@pytest.mark.slow
@pytest.mark.parametrize("name", one_of_each())
def test_architectures_in_tensor_train_format(name, tmp_path):
    model = model_of(name)
    assert factorize(model) or name.startswith("tt_")
    source = source_of(model)
    for form in ("onnx", "pt2", "dense"):
        assert difference(source, form, tmp_path) < CLOSE, form


QUANTIZED = {
    "8 bits": QuantSpec(bits=8),
    "2 bits": QuantSpec(bits=2),
    "affine": QuantSpec(bits=4, grid="affine"),
    "groups": QuantSpec(bits=3, granularity=PerGroup(32)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spec"),
    [*(("mlp_small", spec) for spec in QUANTIZED.values()), ("lenet5", QuantSpec(bits=4))],
    ids=[*QUANTIZED, "convolutions, 4 bits"],
)
def test_quantized_tensor_trains_in_onnx(name, spec, tmp_path):
    model = model_of(name)
    assert factorize(model)
    assert difference(source_of(model, spec), "onnx", tmp_path) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "vit_tiny"])
def test_quantized_networks(name, tmp_path):
    source = source_of(model_of(name), QuantSpec(bits=4))
    for form in ("onnx", "pt2"):
        assert difference(source, form, tmp_path) < CLOSE, form


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp_small", "lenet5", "vit_tiny"])
def test_inputs_in_8_bits_differ_by_a_step_at_most_rarely(name, tmp_path):
    model = model_of(name)
    shape = model.spec["kwargs"]["input_shape"]
    source = source_of(model, QuantSpec(bits=8, activation_bits=8), torch.randn(64, *shape))
    assert source.rounds_inputs
    inputs = inputs_of(source)
    found = export(source, "onnx", tmp_path / "model", Samples(inputs, "inputs"), timed=False).agreement
    assert found.equal_predictions == 1
    assert found.largest_difference < 0.02 * found.largest_output
    assert difference(source, "pt2", tmp_path) < CLOSE


def test_a_dense_model_is_an_ordinary_one(tmp_path):
    model = model_of("lenet5")
    factorize(model)
    export(
        source_of(model), "dense", tmp_path / "dense", Samples(torch.randn(3, 1, 28, 28), "x"), timed=False
    )
    content = artifact.read(tmp_path / "dense")
    assert content.modules == {}
    plain = model_of("lenet5")
    plain.load_state_dict(dict(content.tensors))  # with nothing of this package
    torch.testing.assert_close(plain.conv2.weight, model.conv2.to_dense())


def test_folded_batch_norms_come_back_as_batch_norms():
    model = model_of("resnet20")
    x = torch.randn(4, 3, 16, 16)
    expected = model(x)
    assert fold_batch_norms(model, x) > 0
    plain = fold(model)
    assert surgery.structure(plain) == {}
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)


def test_the_dense_form_of_a_perceptron_born_in_tensor_train_format_is_a_perceptron():
    model = model_of("tt_mlp")
    plain = fold(model)
    assert plain.spec["target"] == "compresskd.models.mlp.MLP"
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_model_that_answers_otherwise_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("compresskd.export.pt2.read", lambda path: lambda x: torch.zeros(len(x), 10))
    source = source_of(build("compresskd.models.mlp.MLP", {"num_classes": 10, "input_shape": [8]}, seed=0))
    with pytest.raises(
        ExportFailed, match=r"answers otherwise than its source on 3 inputs.*nothing was kept"
    ):
        export(source, "pt2", tmp_path / "model.pt2", Samples(torch.randn(3, 8), "3 inputs"), timed=False)
    assert list(tmp_path.iterdir()) == []
    assert not report_of(tmp_path / "model.pt2").exists()


def test_differences_and_predictions_are_counted():
    inputs = torch.eye(4)
    found = compare(lambda x: x, lambda x: x + torch.tensor([0.0, 0.0, 0.0, 2.0]), inputs, batch_sizes=(1, 3))
    assert found == Agreement(2.0, 1.0, 0.25, 8)
    with pytest.raises(ExportFailed, match=r"expected outputs \[1, 4\] of torch.float32, got \[1, 3\]"):
        compare(lambda x: x, lambda x: x[:, :3], inputs)
    samples = Samples(inputs, "inputs")
    check(Agreement(1e-3, 20.0, 1.0, 8), samples, rounds_inputs=False)
    check(Agreement(2.0, 20.0, 0.99, 8), samples, rounds_inputs=True)
    check(Agreement(0.9, 20.0, 0.5, 8), samples, rounds_inputs=True)
    for wrong, rounds in ((Agreement(3e-3, 20.0, 1.0, 8), False), (Agreement(1.1, 20.0, 0.9, 8), True)):
        with pytest.raises(ExportFailed):
            check(wrong, samples, rounds_inputs=rounds)
