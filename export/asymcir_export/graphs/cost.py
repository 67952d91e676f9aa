"""What a network costs: parameters, and multiply-accumulates for one picture.

Shapes come from onnx's own inference, so the graph must know its sizes; picture preparation is no part of the network,
and has neither weights nor matrix products.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from asymcir_export.errors import ExportError
from asymcir_export.graphs.device_graph import PREPROCESSING_PREFIX
from asymcir_export.graphs.writer import copy_without_weights, infer_shapes

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_SMALL_INTEGERS = frozenset({TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT4, TensorProto.INT4})
_COUNTED = frozenset({"Conv", "Gemm", "MatMul"})
_REFUSED = frozenset(
    {"Attention", "ConvInteger", "ConvTranspose", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "If"}
    | {"LSTM", "Loop", "MatMulInteger", "MatMulNBits", "MultiHeadAttention", "QLinearConv", "QLinearMatMul", "RNN"}
    | {"Scan"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """Size and cost of a network.

    Attributes:
        parameters: weights, however they are stored; batch norms that the export folded are not counted twice.
        macs: multiply-accumulates of convolutions and matrix products for one picture.
    """

    parameters: int
    macs: int


def measure_cost(model: ModelProto) -> ModelCost:
    """Count a network's parameters and multiply-accumulates.

    Args:
        model: with or without preparation of the picture, its network's sizes fixed; any weight storage.

    Raises:
        ExportError: it has operators whose cost is not known here, or a shape that cannot be inferred.
    """
    own = [node for node in model.graph.node if not node.name.startswith(PREPROCESSING_PREFIX)]
    unknown = sorted({node.op_type for node in own} & _REFUSED)
    if unknown:
        raise ExportError(f"the graph has operators that are not counted: {', '.join(unknown)}; export it without them")
    macs = count_macs(model)
    return ModelCost(
        parameters=_count_parameters(model),
        macs=sum(macs[node.output[0]] for node in own if node.output[0] in macs),
    )


def count_macs(model: ModelProto) -> dict[str, int]:
    """Count the multiply-accumulates of every Conv, Gemm and MatMul: its output's name -> MACs.

    Raises:
        ExportError: a shape cannot be inferred.
    """
    shapes = _infer(model)
    return {node.output[0]: _macs_of(node, shapes) for node in model.graph.node if node.op_type in _COUNTED}


def _infer(model: ModelProto) -> dict[str, list[int]]:
    """Return name -> shape of every value whose shape is known and fixed."""
    known = copy_without_weights(model)
    known.graph.initializer.extend(model.graph.initializer)
    infer_shapes(known)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*known.graph.value_info, *known.graph.input, *known.graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = [axis.dim_value for axis in axes]
    return shapes


def _macs_of(node: NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """Elements of the output times what is summed for each."""
    try:
        first, second, found = (shapes[name] for name in (*node.input[:2], node.output[0]))
    except KeyError as exc:
        raise ExportError(f"the shape of {exc} cannot be inferred, so {node.op_type} is not counted") from exc
    if node.op_type == "Conv":  # the weight is [out, in / groups, height, width]
        return math.prod(found) * math.prod(second[1:])
    transposed = node.op_type == "Gemm" and any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(found) * (first[0] if transposed else first[-1])


def _count_parameters(model: ModelProto) -> int:
    """Count the elements of weights: constants of more than one element, float or stored as small integers.

    Scales and zero points of the storage are not weights, and single numbers (bounds, epsilons) are settings.
    """
    storage = _storage_constants(model)
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) > 1
        and tensor.data_type in _FLOATS | _SMALL_INTEGERS
        and tensor.name not in storage
        and not tensor.name.startswith(PREPROCESSING_PREFIX)
    )


def _storage_constants(model: ModelProto) -> set[str]:
    """Return the names of scales and zero points: what turns integers back into weights."""
    integers = {tensor.name for tensor in model.graph.initializer if tensor.data_type in _SMALL_INTEGERS}
    found: set[str] = set()
    restored: set[str] = set()  # integers made float, before their scale
    for node in model.graph.node:
        if node.op_type in {"DequantizeLinear", "QuantizeLinear"}:
            found.update(node.input[1:])
        elif node.op_type == "Cast" and node.input[0] in integers:
            restored.add(node.output[0])
        elif node.op_type == "Mul" and restored & set(node.input):
            found.update(set(node.input) - restored)
    return found
