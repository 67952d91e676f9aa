"""What an ONNX model costs: parameters, and multiply-accumulates at one input size.

The file is read with a schema of the few ONNX fields that are needed, because the benchmarks run where the `onnx`
package is not installed; shapes come from running the graph itself, with the operators' tensors as further outputs.

Source: onnx/onnx.proto, of https://github.com/onnx/onnx.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from asymcir_benchmarks.errors import BenchmarkError

PREPROCESSING_PREFIX = "preprocess_"
"""How the export names nodes and constants of the in-graph resize and normalisation, which are no part of the model."""

_FLOATS = frozenset({1, 10, 11, 16})  # TensorProto.DataType: float32, float16, double, bfloat16
_SMALL_INTEGERS = frozenset({2, 3, 21, 22})  # uint8, int8, uint4, int4: weights that are stored quantised
_COUNTED = frozenset({"Conv", "Gemm", "MatMul"})
_REFUSED = frozenset(
    {"Attention", "ConvInteger", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "If"}
    | {"LSTM", "Loop", "MatMulInteger", "MatMulNBits", "MultiHeadAttention", "QLinearConv", "QLinearMatMul", "RNN"}
    | {"Scan"}
)
_FIELDS: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    "Model": (("graph", 7, "Graph"),),
    "Graph": (
        ("node", 1, "*Node"),
        ("initializer", 5, "*Tensor"),
        ("input", 11, "*Value"),
        ("output", 12, "*Value"),
    ),
    "Node": (
        ("input", 1, "*string"),
        ("output", 2, "*string"),
        ("name", 3, "string"),
        ("op_type", 4, "string"),
        ("attribute", 5, "*Attribute"),
    ),
    "Attribute": (("name", 1, "string"), ("i", 3, "int64"), ("t", 5, "Tensor")),
    "Tensor": (("dims", 1, "*int64"), ("data_type", 2, "int32"), ("name", 8, "string")),
    "Value": (("name", 1, "string"),),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """Size and cost of a model.

    Attributes:
        parameters: weights, however they are stored; batch norms that the export folded are not counted twice.
        macs: multiply-accumulates of convolutions and matrix products for one picture.
    """

    parameters: int
    macs: int


def measure_cost(path: Path, size: int) -> ModelCost:
    """Count an encoder's parameters and multiply-accumulates.

    Args:
        path: takes one picture [size, size, 3], uint8.
        size: side of the picture, pixels: at the encoder's own, nothing is resized.

    Raises:
        BenchmarkError: it is not such a model, or has operators whose cost is not known here.
    """
    try:
        model = _schema()["Model"].FromString(path.read_bytes())
    except (OSError, DecodeError) as exc:
        raise BenchmarkError(f"cannot read {path} as an ONNX model: {exc}") from exc
    own = [node for node in model.graph.node if not node.name.startswith(PREPROCESSING_PREFIX)]
    unknown = sorted({node.op_type for node in own} & _REFUSED)
    if unknown:
        raise BenchmarkError(f"{path} has operators that are not counted: {', '.join(unknown)}; export it without them")
    return ModelCost(parameters=_count_parameters(model.graph), macs=_count_macs(model, path, size))


def _count_parameters(graph: Any) -> int:
    """Count the elements of weights: constants of more than one element, float or stored as small integers.

    Scales and zero points of the storage are not weights, and single numbers (bounds, epsilons) are settings.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors |= {name: item.t for name in node.output for item in node.attribute if item.name == "value"}
    storage = _storage_constants(graph.node, tensors)
    count = 0
    for name, tensor in tensors.items():
        elements = math.prod(tensor.dims)
        weight = elements > 1 and tensor.data_type in _FLOATS | _SMALL_INTEGERS
        if weight and name not in storage and not name.startswith(PREPROCESSING_PREFIX):
            count += elements
    return count


def _storage_constants(nodes: Iterable[Any], tensors: Mapping[str, Any]) -> set[str]:
    """Return the names of scales and zero points: what turns integers back into weights."""
    found: set[str] = set()
    restored: set[str] = set()  # integers made float, before their scale
    for node in nodes:
        if node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            found.update(node.input[1:])
        elif node.op_type == "Cast" and node.input[0] in tensors:
            if tensors[node.input[0]].data_type in _SMALL_INTEGERS:
                restored.add(node.output[0])
        elif node.op_type == "Mul" and restored & set(node.input):
            found.update(set(node.input) - restored)
    return found


def _count_macs(model: Any, path: Path, size: int) -> int:
    counted = [node for node in model.graph.node if node.op_type in _COUNTED]
    shapes: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    asked = {name for node in counted for name in (*node.input[:2], node.output[0])} - shapes.keys()
    present = {value.name for value in model.graph.output}
    for name in sorted(asked - present):
        model.graph.output.add(name=name)
    shapes.update(_run_for_shapes(model, sorted(asked), path, size))
    return sum(_macs_of(node, shapes) for node in counted if not node.name.startswith(PREPROCESSING_PREFIX))


def _run_for_shapes(model: Any, names: list[str], path: Path, size: int) -> dict[str, tuple[int, ...]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # every operator stays what it is
    options.log_severity_level = 4  # what would be logged comes as an exception too
    if not names:
        return {}
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (pixels,) = session.get_inputs()
        values = session.run(names, {pixels.name: np.zeros((size, size, 3), dtype=np.uint8)})
    except Exception as exc:  # ONNX Runtime's errors have no common base
        detail = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise BenchmarkError(
            f"cannot run {path} on one uint8 picture [{size}, {size}, 3]: {detail}; expected a device bundle's encoder"
        ) from exc
    return {name: tuple(value.shape) for name, value in zip(names, values, strict=True)}


def _macs_of(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Elements of the output times what is summed for each."""
    first, second = shapes[node.input[0]], shapes[node.input[1]]
    elements = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":  # the weight is [out, in / groups, height, width]
        return elements * math.prod(second[1:])
    transposed = node.op_type == "Gemm" and any(item.name == "transA" and item.i for item in node.attribute)
    return elements * (first[0] if transposed else first[-1])


@functools.cache
def _schema() -> dict[str, Any]:
    """Make message classes of the fields above; the others are carried along unread."""
    file = descriptor_pb2.FileDescriptorProto(name="asymcir_onnx_subset.proto", package="asymcir_onnx", syntax="proto2")
    kinds = {"string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING}
    kinds |= {"int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64}
    kinds |= {"int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32}
    for message, fields in _FIELDS.items():
        entry = file.message_type.add(name=message)
        for name, number, kind in fields:
            field = entry.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            plain = kind.removeprefix("*")
            field.type = kinds.get(plain, descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE)
            if plain not in kinds:
                field.type_name = f".asymcir_onnx.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"asymcir_onnx.{name}")) for name in _FIELDS
    }
