"""Lean weight storage: smaller files of the same float32 computation.

Weights are kept as fp16, int8 or int4 and made float32 by operators on constants, which ONNX Runtime folds once, at
load: speed and memory are those of the fp32 file, only the file (and the download) shrinks by about 2, 4 or 7.

fp16 is a Cast, int8 a Cast, a Mul and a Reshape, which every ONNX Runtime folds by default. A DequantizeLinear would
not be: kept for quantised kernels, it made a 512 x 2048 product 11 times slower in ONNX Runtime 1.22 unless the session
option `session.disable_quant_qdq` was `1`. int4 is a DequantizeLinear all the same, because ONNX Runtime 1.22 cannot
cast it; opened without that option it is slower and still correct.

Notation: K inputs and N outputs of a weight.
"""

from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from asymcir_export.graphs.writer import copy_without_weights

WeightStorage = Literal["fp32", "fp16", "int8", "int4"]
STORAGES: tuple[WeightStorage, ...] = ("fp32", "fp16", "int8", "int4")

SMALL_ELEMENTS = 4096
"""Smaller tensors (biases, norms, depthwise kernels) stay float32: they weigh little and matter much."""

INT8_BLOCK = 64
"""Weights of an output channel that share a scale, for 5% more bytes than one scale per channel, with which the UNION
targets of a MiniLM foundation kept a mean cosine of 0.9970; with this block it is 0.9995."""

INT4_BLOCK = 32
_INT8_MAX, _INT4_MAX = 127, 7
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gather": 0}


def store_lean(model: ModelProto, storage: WeightStorage) -> ModelProto:
    """Return the graph with its large weights stored lean.

    int8 and int4 are symmetric with a scale per block of each output channel's weights. int4 is for matrix products
    alone, beside which convolutions are int8. What is neither (positions) is fp16.

    Args:
        model: float32, with its weights as initialisers; not changed.
        storage: "fp32" returns the graph itself.
    """
    if storage == "fp32":
        return model
    lean = copy_without_weights(model)
    graph = lean.graph
    users: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            users.setdefault(name, []).append((node, position))
    kept: list[TensorProto] = []
    added: list[NodeProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims, dtype=np.int64) < SMALL_ELEMENTS:
            kept.append(tensor)
            continue
        weight = numpy_helper.to_array(tensor)
        tensors, nodes = _store(tensor.name, weight, storage, users.get(tensor.name, []))
        kept.extend(tensors or [tensor])
        added.extend(nodes)
    graph.initializer.extend(kept)
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return lean


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Store a table [V, D] as int8 [V, D] with one scale per row [V]."""
    scales = (np.abs(table).max(axis=1) / _INT8_MAX).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1.0))
    values = np.clip(np.rint(table / divisors[:, None]), -_INT8_MAX, _INT8_MAX)
    return values.astype(np.int8), scales


def _store(
    name: str, weight: NDArray[np.float32], storage: WeightStorage, users: list[tuple[NodeProto, int]]
) -> tuple[list[TensorProto], list[NodeProto]]:
    """Return the constants that replace a weight and the nodes that restore it; nothing to leave it as it is."""
    axis, is_product = _find_channel_axis(weight, users)
    if storage == "fp16" or axis is None:
        if float(np.abs(weight).max()) > float(np.finfo(np.float16).max):
            return [], []
        half = numpy_helper.from_array(weight.astype(np.float16), f"{name}_fp16")
        return [half], [_node("Cast", [half.name], name, to=TensorProto.FLOAT)]
    if storage == "int4" and is_product and weight.shape[1 - axis] % INT4_BLOCK == 0:
        return _store_int4(name, weight, input_axis=1 - axis)
    return _store_int8(name, weight, axis=axis)


def _find_channel_axis(weight: NDArray[np.float32], users: list[tuple[NodeProto, int]]) -> tuple[int | None, bool]:
    """Return the axis of the output channels, None where there is none, and whether it is a matrix product's weight."""
    found = set()
    for node, position in users:
        if node.op_type == "MatMul" and weight.ndim == 2:
            found.add((1 if position == 1 else 0, True))
        elif node.op_type == "Gemm" and position == 1:
            transposed = any(item.name == "transB" and item.i for item in node.attribute)
            found.add((0 if transposed else 1, True))
        elif node.op_type in _CHANNEL_AXIS and position == (0 if node.op_type == "Gather" else 1) and weight.ndim > 1:
            found.add((_CHANNEL_AXIS[node.op_type], False))
        else:
            return None, False
    return found.pop() if len(found) == 1 else (None, False)


def _store_int8(name: str, weight: NDArray[np.float32], *, axis: int) -> tuple[list[TensorProto], list[NodeProto]]:
    """Store blocks of INT8_BLOCK weights of one output channel with a scale each, or whole channels where none fit."""
    if axis == 0:  # [N, K, ...]
        rows, along = weight.reshape(len(weight), -1), 1
    elif axis == weight.ndim - 1:  # [..., K, N]
        rows, along = weight.reshape(-1, weight.shape[-1]), 0
    else:
        rows, along = weight, -1
    if along >= 0 and rows.shape[along] % INT8_BLOCK == 0:
        split = (-1, INT8_BLOCK, rows.shape[1]) if along == 0 else (rows.shape[0], -1, INT8_BLOCK)
        blocks = rows.reshape(split)
        reduced: tuple[int, ...] = (1 if along == 0 else 2,)
    else:
        blocks, reduced = weight, tuple(i for i in range(weight.ndim) if i != axis)
    scales = _scales(np.abs(blocks).max(axis=reduced, keepdims=True), _INT8_MAX)
    values = np.clip(np.rint(blocks / scales), -_INT8_MAX, _INT8_MAX).astype(np.int8)
    tensors = [numpy_helper.from_array(values, f"{name}_int8"), numpy_helper.from_array(scales, f"{name}_scales")]
    tensors.append(numpy_helper.from_array(np.asarray(weight.shape, dtype=np.int64), f"{name}_shape"))
    cast = _node("Cast", [tensors[0].name], f"{name}_unscaled", to=TensorProto.FLOAT)
    scale = _node("Mul", [cast.output[0], tensors[1].name], f"{name}_blocks")
    return tensors, [cast, scale, _node("Reshape", [scale.output[0], tensors[2].name], name)]


def _store_int4(
    name: str, weight: NDArray[np.float32], *, input_axis: int
) -> tuple[list[TensorProto], list[NodeProto]]:
    rows = weight if input_axis == 0 else weight.T  # [K, N]
    blocks = rows.reshape(-1, INT4_BLOCK, rows.shape[1])  # [K / block, block, N]
    scales = _scales(np.abs(blocks).max(axis=1, keepdims=True), _INT4_MAX)
    values = np.clip(np.rint(blocks / scales), -_INT4_MAX, _INT4_MAX).astype(np.int8).reshape(rows.shape)
    flat_scales = scales[:, 0]  # [K / block, N]
    if input_axis == 1:
        values, flat_scales = values.T, flat_scales.T
    packed = helper.make_tensor(f"{name}_int4", TensorProto.INT4, weight.shape, _pack_int4(values), raw=True)
    tensors = [packed, numpy_helper.from_array(np.ascontiguousarray(flat_scales), f"{name}_scales")]
    names = [tensor.name for tensor in tensors]
    return tensors, [_node("DequantizeLinear", names, name, axis=input_axis, block_size=INT4_BLOCK)]


def _pack_int4(values: NDArray[np.int8]) -> bytes:
    """Pack two values a byte, the first in the low half, as the ONNX specification says."""
    halves = np.ascontiguousarray(values).reshape(-1).view(np.uint8) & 0x0F
    return (halves[0::2] | (halves[1::2] << 4)).tobytes()


def _scales(largest: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    scales = (largest / limit).astype(np.float32)
    return np.where(scales > 0, scales, np.float32(1.0))


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{output}_{kind}_restored", **attributes)
