"""A matrix that several layers share is in an ONNX file once, dense, factorized and in integers."""

from pathlib import Path

import onnx
import pytest
import torch
from tied_models import MODELS

from compresskd import artifact, layers
from compresskd.compression.plan import Method, plan_layers
from compresskd.compression.replacement import carry_out
from compresskd.compression.size import Size
from compresskd.export import Source, export
from compresskd.export.samples import Samples
from compresskd.models.build import build
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.prepare import QuantSpec, prepare

AROUND = 50_000  # bytes of the graph, of names, of vectors and of scales


def source(name, rank, bits):
    model = build("tied_models.build", {"name": name}, seed=0)
    if rank:
        chosen = {layer.name: layer.module for layer in layers.find(model)}
        plan = plan_layers(chosen, Size(rank), Method("tensor_train", None, {}), model, lambda _: 0.0)
        assert {"language_model": "table", "twins": "one"}[name] in carry_out(model, plan).replacements
    if bits:
        prepare(model, QuantSpec(bits=bits))
    content = artifact.content_of(model)
    quantized = {key: value for key, value in content.tensors.items() if isinstance(value, QuantizedTensor)}
    return Source(Path("none"), artifact.build(content, trust=("tied_models",)), quantized, (16,), content)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rank", [None, 24])
@pytest.mark.parametrize("bits", [None, 8])
def test_tied_parameters_are_in_the_file_once(name, rank, bits, tmp_path):
    exported = source(name, rank, bits)
    found = export(
        exported, "onnx", tmp_path / "model.onnx", Samples(torch.randn(33, 16), "inputs"), timed=False
    )
    graph = onnx.load(found.path).graph
    held = sum(torch.Size(tensor.dims).numel() for tensor in graph.initializer if len(tensor.dims) > 1)
    matrices = {p.data_ptr(): p.numel() for p in exported.model.parameters() if p.dim() > 1}
    assert held == sum(matrices.values())
    each = 4 if bits is None else 1
    assert each * held < found.num_bytes < each * held + AROUND
    if rank is None:  # far below what two copies take
        assert found.num_bytes < 1.5 * each * held
