"""Integers in the graph: the types of the initializers, what onnxruntime makes of them, and the audit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from small_models import factorize, model_of, needs_vnni, source_of

import compresskd
from compresskd.export import ExportFailed, qdq
from compresskd.export import onnx as onnx_form
from compresskd.models.build import build
from compresskd.quant.granularity import PerGroup, PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import quantize_tensor
from compresskd.quant.prepare import QuantSpec

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}


def exported(source, folder):
    """The file, read by onnx."""
    types = onnx_form.write(
        source.model, source.quantized, torch.randn(2, *source.input_shape), folder / "m.onnx"
    )
    assert types.keys() == source.quantized.keys()
    model = onnx.load(folder / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model


def initializers(model):
    return {tensor.name: tensor for tensor in model.graph.initializer}


def kernels(folder):
    """Operators that onnxruntime runs, after its own optimisation."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(str(folder / "m.onnx"), settings, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "granularity"), [(2, None), (3, PerGroup(16)), (4, None), (8, None)])
def test_every_quantized_tensor_is_there_in_integers_and_in_nothing_else(bits, granularity, tmp_path):
    model = model_of("mlp_small" if bits in (2, 3) else "lenet5")
    assert factorize(model) > 0
    spec = QuantSpec(bits=bits) if granularity is None else QuantSpec(bits=bits, granularity=granularity)
    source = source_of(model, spec)
    found = initializers(exported(source, tmp_path))
    wanted = onnx.TensorProto.INT8 if bits == 8 else onnx.TensorProto.INT4
    scales = 0
    for name, tensor in source.quantized.items():
        assert found[f"{name}_quantized"].data_type == wanted
        assert np.prod(found[f"{name}_quantized"].dims) >= tensor.integers.numel()
        scales += 2 * tensor.scale.numel()  # as they are, and their halves
    state = source.model.state_dict()
    vectors = sum(value.numel() for name, value in state.items() if name not in source.quantized)
    floats = sum(int(np.prod(tensor.dims)) for tensor in found.values() if tensor.data_type in FLOATS)
    assert floats <= vectors + scales


@pytest.mark.slow
def test_cores_are_laid_out_once_and_not_at_every_call(tmp_path):
    model = model_of("mlp_small")
    factorize(model)
    graph = exported(source_of(model, QuantSpec(bits=4)), tmp_path).graph
    readers = {node.output[0] for node in graph.node if node.op_type in ("DequantizeLinear", "Add")}
    moved = [
        node for node in graph.node if node.op_type in ("Reshape", "Transpose") and node.input[0] in readers
    ]
    weights = [node for node in moved if "quantized" in node.input[0]]
    assert weights == []


def linear(size=64, **options):
    model = build(
        "compresskd.models.mlp.MLP", {"hidden": [], "num_classes": size, "input_shape": [size]}, seed=0
    )
    spec = QuantSpec(**({"bits": 8, "activation_bits": 8} | options))
    return source_of(model, spec, torch.randn(64, size))


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_linear_layers_with_rounded_inputs_multiply_integers(bits, tmp_path):
    source = linear(bits=bits)
    graph = exported(source, tmp_path).graph
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert found["fc1.weight_quantized"] == onnx.TensorProto.INT8
    assert found["fc1.input_quant.zero_point"] == onnx.TensorProto.UINT8
    assert onnx.TensorProto.INT32 in found.values()  # the bias
    assert kernels(tmp_path) == ["QuantizeLinear", "QGemm"]
    x = torch.randn(40, 64)
    with torch.no_grad():
        expected = source.model(x)
    # the bias is rounded to steps of the integer product, to the nearest
    input_scale = float(source.model.get_submodule("fc1").input_quant.scale)
    bound = 0.5 * input_scale * float(source.quantized["fc1.weight"].scale.max())
    assert float((onnx_form.read(tmp_path / "m.onnx")(x) - expected).abs().max()) < bound + 1e-5


@pytest.mark.slow
def test_inputs_that_nobody_rounded_stay_as_they_are(tmp_path):
    """onnxruntime makes of a MatMul with a dequantized weight one that rounds the other factor, where it can."""
    exported(source_of(model_of("vit_tiny"), QuantSpec(bits=4)), tmp_path)
    assert "MatMulNBits" not in kernels(tmp_path)


@pytest.mark.slow
def test_tokens_multiply_integers_too(tmp_path):
    model = model_of("vit_tiny")
    exported(source_of(model, QuantSpec(bits=8, activation_bits=8), torch.randn(8, 3, 16, 16)), tmp_path)
    assert kernels(tmp_path).count("MatMulIntegerToFloat") == 4
    assert kernels(tmp_path).count("QGemm") == 1


@pytest.mark.slow
def test_unpacked_at_load_nothing_is_dequantized_at_a_call(tmp_path):
    source = source_of(model_of("mlp_small"), QuantSpec(bits=4))
    exported(source, tmp_path)
    assert "DequantizeLinear" in kernels(tmp_path)
    x = torch.randn(5, *source.input_shape)
    plain, unpacked = (
        onnx_form.read(tmp_path / "m.onnx", options=o)(x) for o in ({}, onnx_form.UNPACK_AT_LOAD)
    )
    torch.testing.assert_close(plain, unpacked, rtol=1e-5, atol=1e-6)


def test_a_float_copy_is_found_in_whatever_order():
    quantized = quantize_tensor(torch.randn(6, 4), Grid(4), PerTensor())
    graph = ir.Graph([], [], nodes=[], name="graph")
    copy = ir.tensor(np.ascontiguousarray(quantized.dequantize().numpy().T), name="turned")
    graph.register_initializer(ir.Value(name="turned", const_value=copy))
    with pytest.raises(
        ExportFailed, match=r"'turned' of the graph is a float copy of the quantized tensor 'fc1\.weight'"
    ):
        qdq.audit(graph, {"fc1.weight": quantized})
    qdq.audit(graph, {"fc1.weight": quantize_tensor(torch.randn(6, 4), Grid(4), PerTensor())})


CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_export_qdq import linear
from compresskd.export import onnx
source = linear(256)
torch.set_grad_enabled(False)
onnx.write(source.model, source.quantized, torch.randn(2, 256), Path(sys.argv[2]))
# the largest products that 8 bits give: where sums of two are kept in 16 bits, they overflow
x = 4 * torch.randn(64, 256).sign()
expected = source.model(x)
print(float((onnx.read(Path(sys.argv[2]))(x) - expected).abs().max() / expected.abs().max()))
"""


@needs_vnni
@pytest.mark.slow
def test_integer_products_are_right_where_onednn_is_told_that_there_is_no_vnni(tmp_path):
    """Neither form goes through oneDNN's integer kernels, which overflow there without a word."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(compresskd.__file__).parents[1]), str(here.parent)])
    arguments = [sys.executable, "-P", "-c", CHILD, str(here), str(tmp_path / "m.onnx")]
    ended = subprocess.run(
        arguments, check=False, capture_output=True, text=True, env=environment, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout.splitlines()[-1]) < 1e-4
