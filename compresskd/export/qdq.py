"""Integers in an ONNX graph: initializers that are read through DequantizeLinear, and no float copy of any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compresskd.export.errors import ExportFailed
from compresskd.export.integers import Integers, Transform, groups_of, integers_of
from compresskd.quant.granularity import PerGroup
from compresskd.quant.pack import QuantizedTensor

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}


def hold_out(graph: ir.Graph, names: Iterable[str]) -> list[str]:
    """Make those initializers inputs, so that nothing takes them for constants; the names that the graph has."""
    held = [name for name in names if name in graph.initializers]
    for name in held:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    return held


def put_in(model: ir.Model, quantized: Mapping[str, QuantizedTensor]) -> dict[str, str]:
    """Put the integers in place of what was held out; the name of the ONNX type of each.

    Raises:
        ExportFailed: a float copy of a quantized tensor is left.
    """
    graph = model.graph
    held = {str(value.name): value for value in graph.inputs if value.name in quantized}
    vectors = {name: quantized[name].dequantize().numpy() for name in held}
    for name, value in held.items():
        graph.inputs.remove(value)
        if isinstance(quantized[name].granularity, PerGroup):
            _put_groups(graph, value, quantized[name])
        else:
            _put(graph, value, quantized[name], vectors)
    graph.sort()
    RemoveUnusedNodesPass()(model)
    audit(graph, quantized)
    return {name: graph.initializers[f"{name}_quantized"].dtype.name for name in held}  # pyright: ignore


def audit(graph: ir.Graph, quantized: Mapping[str, QuantizedTensor]) -> None:
    """Raise ExportFailed where a float constant of the graph has the values of a quantized tensor, in any order."""
    constants = {name: value.const_value for name, value in graph.initializers.items()}
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                constants[f"constant of {node.name}"] = attribute.as_tensor()
    floats = {
        name: np.sort(tensor.numpy().astype(np.float32), axis=None)
        for name, tensor in constants.items()
        if tensor is not None and tensor.dtype in _FLOATS
    }
    for name, value in quantized.items():
        expected = np.sort(value.dequantize().numpy(), axis=None)
        for constant, values in floats.items():
            same = values.shape == expected.shape and np.array_equal(values, expected)
            if same and expected[0] != expected[-1]:  # many tensors are of one value alone
                raise ExportFailed(
                    f"'{constant}' of the graph is a float copy of the quantized tensor '{name}'"
                )


def _put(
    graph: ir.Graph, value: ir.Value, quantized: QuantizedTensor, vectors: Mapping[str, np.ndarray]
) -> None:
    """Transpositions and changes of shape are done here once and not at every call, where the scales allow it."""
    layout = _layout(value)
    last = layout[-1][0].outputs[0] if layout else value
    product = _integer_product(last)
    integers = integers_of(quantized, [step for _, step in layout], as_int8=product is not None)
    if integers is None:
        last, product = value, None
        integers = integers_of(quantized)
        assert integers is not None
    read = _dequantize(graph, str(value.name), integers)
    if product is None and _is_right_factor(last):
        # onnxruntime would else make a MatMulNBits, which rounds the other factor to 8 bits that nobody asked for
        shape = _constant(graph, f"{value.name}_shape", np.array(integers.values.shape))
        read = _node(graph, "Reshape", [read, shape])
    convenience.replace_all_uses_with(last, read)
    if product is not None and integers.offset is None:
        _round_bias(graph, product, integers, vectors)


def _put_groups(graph: ir.Graph, value: ir.Value, quantized: QuantizedTensor) -> None:
    name, shape = str(value.name), list(quantized.shape)
    read = _dequantize(graph, name, groups_of(quantized))
    flat = _node(graph, "Reshape", [read, _constant(graph, f"{name}_flat", np.array([-1]))])
    bounds = [
        _constant(graph, f"{name}_{end}", np.array([n])) for end, n in (("start", 0), ("end", np.prod(shape)))
    ]
    kept = _node(graph, "Slice", [flat, *bounds])
    shaped = _node(graph, "Reshape", [kept, _constant(graph, f"{name}_shape", np.array(shape))])
    convenience.replace_all_uses_with(value, shaped)


def _dequantize(graph: ir.Graph, name: str, integers: Integers) -> ir.Value:
    inputs = [
        _constant(graph, f"{name}_quantized", integers.values),
        _constant(graph, f"{name}_scale", integers.scale),
    ]
    if integers.zero_point is not None:
        inputs.append(_constant(graph, f"{name}_zero_point", integers.zero_point))
    read = _node(graph, "DequantizeLinear", inputs, {} if integers.axis is None else {"axis": integers.axis})
    if integers.offset is None:
        return read
    return _node(
        graph, "Add", [read, _constant(graph, f"{name}_half_scale", integers.offset.astype(np.float32))]
    )


def _round_bias(
    graph: ir.Graph, product: ir.Node, weight: Integers, vectors: Mapping[str, np.ndarray]
) -> None:
    """The bias of a Gemm in steps of its integer product (int32): only then does onnxruntime multiply integers."""
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    if product.op_type != "Gemm" or bias is None:
        return
    constant = convenience.get_const_tensor(bias)
    values = vectors.get(str(bias.name)) if constant is None else constant.numpy()
    reader = product.inputs[0].producer()  # pyright: ignore[reportOptionalMemberAccess]
    input_scale = convenience.get_const_tensor(reader.inputs[1])  # pyright: ignore
    if values is None or input_scale is None:
        return
    step = np.broadcast_to(weight.scale * input_scale.numpy(), values.shape).astype(np.float32)
    limits = np.iinfo(np.int32)
    steps = np.clip(np.round(values.astype(np.float64) / step), limits.min, limits.max).astype(np.int32)
    name = f"{product.outputs[0].name}_bias"
    inputs = [_constant(graph, f"{name}_quantized", steps), _constant(graph, f"{name}_scale", step)]
    product.replace_input_with(2, _node(graph, "DequantizeLinear", inputs, {"axis": 0}))


def _integer_product(value: ir.Value) -> ir.Node | None:
    """The product that alone reads this weight, where its other factor comes from integers too."""
    use = _only_use(value)
    if use is None or use.node.op_type not in ("Gemm", "MatMul") or use.idx != 1:
        return None
    other = use.node.inputs[0]
    reader = None if other is None else other.producer()
    return use.node if reader is not None and reader.op_type == "DequantizeLinear" else None


def _is_right_factor(value: ir.Value) -> bool:
    use = _only_use(value)
    return use is not None and use.node.op_type == "MatMul" and use.idx == 1


def _layout(value: ir.Value) -> list[tuple[ir.Node, Transform]]:
    """The transpositions and changes of shape that alone read this value, one after the other."""
    steps: list[tuple[ir.Node, Transform]] = []
    while (use := _only_use(value)) is not None and use.idx == 0:
        transform = _transform(use.node)
        if transform is None:
            break
        steps.append((use.node, transform))
        value = use.node.outputs[0]
    return steps


def _only_use(value: ir.Value) -> Any:
    uses = list(value.uses())
    return uses[0] if len(uses) == 1 else None


def _transform(node: ir.Node) -> Transform | None:
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm")
        return lambda array: array.transpose(order)
    if node.op_type == "Reshape":
        shape = convenience.get_const_tensor(node.inputs[1])  # pyright: ignore[reportArgumentType]
        if shape is not None:
            return lambda array: array.reshape(shape.numpy())
    return None


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )
    graph.register_initializer(value)
    return value


def _node(
    graph: ir.Graph, op_type: str, inputs: list[ir.Value], attributes: Mapping[str, int] | None = None
) -> ir.Value:
    """The output of a new node, which is put in its place by `graph.sort()`."""
    made = ir.node(op_type, inputs, attributes)
    made.outputs[0].name = f"{inputs[0].name}_{op_type.lower()}"
    graph.append(made)
    return made.outputs[0]
