"""Claimed and actual bytes are equal, everything included."""

import math
from dataclasses import asdict

import pytest
import torch
from stored_models import ABOUT, GRIDS, content, factorized, make, mlp, shake

from compresskd import artifact
from compresskd.artifact import compact
from compresskd.artifact.dictionary import DICTIONARY
from compresskd.models.build import build
from compresskd.quant.granularity import PerChannel, PerTensor
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import QuantSpec, prepare

LENET5 = ("compresskd.models.lenet.LeNet5", {"num_classes": 10, "input_shape": [1, 28, 28]})


CIFAR10 = {
    "class_names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "input_shape": [3, 32, 32],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "data": "cifar10",
}


def quantized(
    model, bits, *, kind="symmetric", granularity=None, other_bits=16, activation_bits=None, about=None
):
    spec = QuantSpec(
        bits=bits,
        grid=kind,
        core_grid=kind,
        granularity=granularity or PerTensor(),
        other_bits=other_bits,
        initial_scale="absmax",
        activation_bits=activation_bits,
    )
    prepare(model, spec)
    return content(model.eval(), **(about or {}))


def lenet5(rank=None):
    model = shake(build(*LENET5, seed=0))
    return model if rank is None else factorized(model, rank)


def claimed(stored):
    """Bytes by the rule: ceil(n x bits / 8) for integers (five ternary ones a byte), 2 a scale, the rest raw."""
    split = {"integers": 0, "scales": 0, "floats": 0}
    for value in stored.tensors.values():
        if not isinstance(value, QuantizedTensor):
            split["floats"] += value.numel() * value.itemsize if value.is_floating_point() else 0
            continue
        count, bits, num_scales = value.integers.numel(), value.grid.bits, len(value.scale)
        ternary = value.grid.kind == "ternary"
        split["integers"] += math.ceil(count / 5) if ternary else math.ceil(count * bits / 8)
        split["scales"] += 2 * num_scales
        split["scales"] += 0 if value.zero_point is None else math.ceil(num_scales * bits / 8)
    return split


@pytest.mark.parametrize("rank", [None, 8])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_packed_payload_is_what_is_claimed_to_the_byte(grid, granularity, rank, tmp_path):
    stored = quantized(
        build("compresskd.models.mlp.MLP", {"hidden": [37], "num_classes": 10, "input_shape": [7, 9]}, seed=0)
        if rank is None
        else factorized(mlp(), rank),
        grid.bits,
        kind=grid.kind,
        granularity=granularity,
    )
    split = artifact.write_compact(stored, tmp_path / "model.ckd", coded=False)
    assert {name: size for name, size in asdict(split).items() if name in claimed(stored)} == claimed(stored)
    assert split.checksum == 8
    assert split.total == (tmp_path / "model.ckd").stat().st_size
    assert 0 < split.header < 100


@pytest.mark.slow
def test_a_table_of_models(tmp_path):
    """Header (magic, version, length and all), payload and file of models as they are shipped."""
    rows = {
        "LeNet-300-100, TT rank 8": quantized(
            factorized(shake(build("compresskd.models.mlp.MLP", {
                "hidden": [300, 100], "num_classes": 10, "input_shape": [1, 28, 28]}, seed=0)), 8), 4),
        "LeNet-5": quantized(lenet5(), 4),
        "LeNet-5, TT rank 8": quantized(lenet5(8), 2, kind="half_integer", other_bits=8),
        "ResNet-20": quantized(shake(make("resnet20")), 4, about=CIFAR10),
    }  # fmt: skip
    headers = {}
    for name, stored in rows.items():
        for coded in (True, False):
            split = artifact.write_compact(stored, tmp_path / "model.ckd", coded=coded)
            assert split.total == (tmp_path / "model.ckd").stat().st_size, name
            if not coded:
                assert sum(claimed(stored).values()) == split.total - split.header - split.checksum, name
            headers[name] = split.header
    assert headers["LeNet-300-100, TT rank 8"] <= 55
    assert headers["LeNet-5"] <= 25
    assert headers["LeNet-5, TT rank 8"] <= 60
    assert headers["ResNet-20"] <= 30


def test_each_quantized_input_takes_a_scale_and_a_zero_point():
    from compresskd.quant.activation import calibrate

    model = mlp()
    spec = QuantSpec(bits=4, granularity=PerTensor(), activation_bits=8)
    prepare(model, spec)
    calibrate(model, [torch.rand(4, 1, 8, 8)])
    with_inputs = content(model.eval())
    _, split = artifact.encode(with_inputs, coded=False)
    assert split.scales == 3 * 2 + 3 * 3


def test_coded_files_are_never_larger_and_say_so_in_their_fourth_byte():
    stored = quantized(lenet5(8), 4)
    coded, packed = artifact.encode(stored)[0], artifact.encode(stored, coded=False)[0]
    assert len(coded) < len(packed)
    assert (coded[3], packed[3]) == (
        128 + 2,
        2,
    )  # of models without tied weights, as earlier versions wrote it
    torch.manual_seed(0)
    uniform = {
        name: QuantizedTensor(
            torch.randint(value.grid.low, value.grid.high + 1, value.shape, dtype=torch.int8),
            value.scale, value.zero_point, value.grid, value.granularity,
        ) if isinstance(value, QuantizedTensor) else value
        for name, value in stored.tensors.items()
    }  # fmt: skip
    flat = artifact.Content(stored.architecture, stored.modules, uniform, {}, stored.about)
    assert artifact.encode(flat)[0] == artifact.encode(flat, coded=False)[0]


@pytest.mark.slow
def test_the_same_content_gives_the_same_bytes():
    first, second = (artifact.encode(quantized(lenet5(8), 4))[0] for _ in range(2))
    assert first == second


def test_a_read_file_is_written_again_byte_for_byte():
    data, _ = artifact.encode(quantized(lenet5(8), 4))
    assert artifact.encode(compact.decode(data))[0] == data


def test_sizes_of_the_record_are_those_of_files(tmp_path):
    model = factorized(mlp(), 4)
    prepare(model, QuantSpec(bits=4))
    artifact.save(model.eval(), tmp_path / "checkpoint")
    record = artifact.write_final(tmp_path / "checkpoint", tmp_path, ABOUT)
    folder = tmp_path / "model"
    assert record["file_bytes"] == (folder / "model.ckd").stat().st_size == sum(record["split"].values())
    assert record["interchange_bytes"] == sum(
        (folder / name).stat().st_size for name in ("model.safetensors", "structure.json")
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.ckd",
        "model.safetensors",
        "structure.json",
    ]
    stored = artifact.read(folder)
    sizes = artifact.compact_sizes(stored)
    assert (sizes["file_bytes"], sizes["packed_bytes"]) == (
        record["file_bytes"],
        record["packed_bytes"],
    )


@pytest.mark.slow
def test_sizes_without_each_way_to_make_the_file_smaller():
    dense, tensor_train = lenet5(), lenet5(8)
    stored = quantized(lenet5(8), 4)
    sizes = artifact.compact_sizes(stored)
    assert sizes["float_bytes"] == len(artifact.encode(content(tensor_train))[0])
    assert sizes["dense_bytes"] == len(artifact.encode(content(dense))[0])
    assert sizes["dense_bytes"] > sizes["float_bytes"] > sizes["packed_bytes"] > sizes["file_bytes"]
    alike = artifact.compact_sizes(content(dense))
    assert len(set(alike.values())) == 1


def test_counters_of_batch_norms_cost_nothing_where_they_agree():
    model = make("resnet20")
    size = len(artifact.encode(content(model))[0])
    shake(model)  # all counters are 3 now
    assert len(artifact.encode(content(model))[0]) <= size + 8


def test_the_dictionary_is_part_of_the_format():
    import hashlib

    assert hashlib.sha256(DICTIONARY).hexdigest()[:16] == "62bf84462d809df4"
