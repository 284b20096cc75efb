"""Quantization as the last stage of strategies, run whole on digits."""

import json

import pytest
import torch
from torch import nn

from compresskd import artifact, tt
from compresskd.compression.start_quantized import start_quantized
from compresskd.quant import entropy
from compresskd.quant.grid import quantize
from compresskd.quant.pack import QuantizedTensor, quantize_tensor
from compresskd.quant.prepare import convert, prepare
from compresskd.stages import Quantization

SHORT = ("rank=6", "epochs=2", "teacher_fit.epochs=2", "quant.core_start=nearest")


def stage_of(record):
    assert record.status == "finished"
    assert record.final == "quantize"
    return record.stage("quantize")


def num_values(tensor):
    return len(torch.unique(tensor))


@pytest.mark.slow
def test_distill_qat_quantizes_to_eight_bits_by_default(run_strategy):
    record, directory = run_strategy("strategy=distill_qat", "epochs=8", "teacher_fit.epochs=8")
    stage = stage_of(record)
    assert stage["epochs"] == 8
    assert {layer["bits"] for layer in stage["layers"].values()} == {8}
    gained = stage["metrics"]["test_accuracy"] - record.stage("distill")["metrics"]["test_accuracy"]
    assert gained > -0.02
    weight = artifact.load(directory / stage["checkpoint"]).fc1.weight.detach()
    steps = torch.stack([row.abs()[row != 0].min() for row in weight])
    assert stage["size"]["packed_bytes"] < 0.3 * record.stages[0]["size"]["packed_bytes"]
    assert (weight / steps[:, None]).abs().max() <= 128


@pytest.mark.slow
def test_distill_qat_without_the_student_is_plain_distillation(run_strategy):
    record, _ = run_strategy("strategy=distill_qat", "quant.enabled=false", *SHORT)
    plain, _ = run_strategy("strategy=distill", *SHORT)
    assert [s["name"] for s in record.stages] == ["distill"]
    assert record.stages[0]["metrics"] == plain.stages[0]["metrics"]


@pytest.mark.slow
def test_inputs_are_rounded_in_the_model_that_is_kept(run_strategy):
    record, directory = run_strategy("strategy=distill_qat", "quant.activation_bits=8", *SHORT)
    model = artifact.load(directory / stage_of(record)["checkpoint"])
    seen = []
    model.fc2.input_quant.register_forward_hook(lambda module, args, output: seen.append(output))
    model(torch.rand(64, 1, 8, 8))
    assert num_values(seen[0]) <= 256
    assert sum(p.numel() for p in model.parameters()) == stage_of(record)["size"]["num_parameters"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["distill_then_compress", "compress_then_distill", "distill_to_compressed", "multi_stage"]
)
def test_four_bits_on_top_of_every_strategy(run_strategy, strategy):
    record, directory = run_strategy(f"strategy={strategy}", "bits=4", *SHORT)
    stage = stage_of(record)
    assert stage["layers"]["fc1"]["kind"] == "TTLinear"
    assert stage["size"]["packed_bytes"] < 0.25 * record.stages[-2]["size"]["packed_bytes"]
    layer = artifact.load(directory / stage["checkpoint"]).fc1
    assert all(num_values(core.detach()) <= 16 for core in layer.cores)


@pytest.mark.slow
def test_post_training_quantization_trains_nothing(run_strategy):
    record, directory = run_strategy("bits=4", "quant.mode=ptq", *SHORT, "quant.core_start=gauge_als")
    stage = stage_of(record)
    assert stage["epochs"] == 0
    errors = stage["layers"]["fc1"]["errors"]
    assert errors["gauge_als"] < errors["gauge"] < errors["nearest"]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert "quantize" not in {line["stage"] for line in lines}
    layer = artifact.load(directory / stage["checkpoint"]).fc1
    assert all(num_values(core.detach()) <= 16 for core in layer.cores)


@pytest.mark.slow
def test_integers_are_coded_once_a_run(run_strategy, monkeypatch):
    coded = []
    encoded = entropy._encoded
    monkeypatch.setattr(entropy, "_encoded", lambda tensors: coded.append(tensors) or encoded(tensors))
    record, directory = run_strategy("bits=4", "quant.mode=ptq", *SHORT)
    size = (directory / "model" / "model.ckd").stat().st_size
    assert size == stage_of(record)["size"]["file_bytes"] < stage_of(record)["size"]["packed_bytes"]
    assert len(coded) == 1


@pytest.mark.slow
def test_mode_none_is_the_float_model(run_strategy):
    record, _ = run_strategy("bits=4", "quant.mode=none", *SHORT)
    assert record.final == "finetune"


BAD = {
    "bits": ({"bits": 5}, "bits: got 5, expected 2, 3, 4, 8"),
    "grid": (
        {"grid": "round"},
        "grid: got 'round', expected symmetric, affine, half_integer, ternary",
    ),
    "group": ({"granularity": 0}, "granularity: got 0, expected"),
    "layer": (
        {"layers": {"fc1": 7}},
        "layers.fc1: got 7, expected 0, 2, 3, 4, 8",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match="got"):
        Quantization(**options)


def test_all_faults_are_told_together():
    with pytest.raises(ValueError, match="got") as raised:
        Quantization(mode="later", epochs=-1, entropy=-1.0)
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "mode", "entropy", "epochs",
    ]  # fmt: skip


@pytest.mark.slow
def test_errors_are_fed_back_where_rounding_is_all_there_is(run_strategy):
    common = ("strategy=train", "epochs=4", "bits=2", "quant.mode=ptq")
    plain, _ = run_strategy(*common)
    fed, _ = run_strategy(*common, "quant.rounding=gptq")
    layers = fed.stage("quantize")["layers"]
    assert all(
        layer["errors"]["output_gptq"] < layer["errors"]["output_nearest"] for layer in layers.values()
    )
    assert all(
        "output_nearest" not in layer["errors"] for layer in plain.stage("quantize")["layers"].values()
    )


@pytest.mark.slow
def test_training_starts_from_weights_whose_errors_were_fed_back(run_strategy):
    common = ("strategy=train", "epochs=1", "bits=2", "quant.rounding=gptq", "quant.epochs=0")
    trained, _ = run_strategy(*common)
    rounded, _ = run_strategy(*common[:-1], "quant.mode=ptq")
    same = [record.stage("quantize")["metrics"]["test_accuracy"] for record in (trained, rounded)]
    assert same[0] == same[1]


def test_weights_to_be_trained_are_those_that_round_to_the_integers_of_gptq():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(12, 6, bias=False)
    x = torch.randn(200, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    w, covariance = layer.weight.detach().clone(), x.T @ x / len(x)
    options = {"keep_integers": False, "seed": 0}
    fed = Quantization(bits=3, rounding="gptq")
    start = start_quantized(nn.Sequential(layer), fed, covariances={"0": covariance}, **options)
    tensor = start.tensors["0.weight"]
    again = quantize(layer.weight, tensor.scale, tensor.zero_point, tensor.grid, tensor.granularity)
    assert torch.equal(again, tensor.integers)
    nearest = quantize_tensor(w, tensor.grid, tensor.granularity, method="mse")
    assert not torch.equal(nearest.integers, tensor.integers)


def grouped_table():
    torch.manual_seed(0)
    table = nn.Embedding(600, 32)
    table.weight.data = torch.randn(600, 32) * torch.arange(1, 33) ** -0.7
    return tt.factorize(table, rank=12, row_groups=3, output_covariance=torch.arange(1, 601).float() ** -0.5)


def test_factors_of_groups_of_rows_start_in_the_gauge_that_rounds_best():
    layer = grouped_table()
    dense = layer.to_dense().detach()
    start = start_quantized(
        nn.Sequential(layer), Quantization(bits=4), keep_integers=True, covariances={}, seed=0
    )
    errors = start.errors["0"]
    assert errors["gauge_als"] < errors["gauge"] < errors["nearest"]
    lost = (layer.to_dense().detach() - dense).norm() / dense.norm()
    assert float(lost) == pytest.approx(errors["gauge_als"], rel=1e-3)
    assert all(start.tensors[f"0.factors.{k}"].shape == f.shape for k, f in enumerate(layer.factors))


@pytest.mark.parametrize("core_granularity", ["rank_slice", 16])
@pytest.mark.parametrize(
    "make",
    [
        grouped_table,
        lambda: tt.factorize(nn.Linear(32, 32), rank=4, method="tucker"),
        lambda: tt.factorize(nn.Linear(32, 32), rank=4, method="cp"),
    ],
    ids=["groups", "tucker", "cp"],
)
def test_factors_that_are_no_cores_take_every_granularity(make, core_granularity):
    model = nn.Sequential(make())
    quantization = Quantization(bits=4, core_granularity=core_granularity)
    start = start_quantized(model, quantization, keep_integers=False, covariances={}, seed=0, num_steps=10)
    prepare(model, quantization.spec(), start=start.tensors)
    factors = [t for t in convert(model).values() if isinstance(t, QuantizedTensor) and len(t.shape) == 2]
    assert len(factors) >= 2
    for factor in factors:
        num_groups = -(-factor.integers.numel() // 16)
        assert len(factor.scale) == (1 if core_granularity == "rank_slice" else num_groups)
