"""Graphs that compute in lower precision, and the format that phones load without a parser.

Unlike weight_storage.py, which only stores weights smaller, these change what is computed, so each has to meet its
thresholds (bundles/variants.py). int8 is static: activations get their ranges from real pictures, weights a scale per
output channel, and QuantizeLinear / DequantizeLinear pairs (QDQ) say so in standard operators. The quantiser is ONNX
Runtime's own.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from asymcir_export.errors import ExportError
from asymcir_export.graphs.weight_storage import WeightStorage
from asymcir_export.graphs.writer import infer_shapes, save_onnx, weight_size_bytes
from asymcir_export.int8.bias_correction import correct_biases
from asymcir_export.int8.equalize import equalize_channels

QUANTIZED_OPERATORS = ("Conv", "MatMul", "Gemm", "Add", "Clip")
"""Static int8. Sums and clipped activations belong to it: an 8-bit sum beside a float one is converted twice, and with
ranges taken before the clip instead of after it EfficientNet-Lite0's tokens were more than twice as far off."""

Compute = Literal["fp32", "fp16", "int8"]
COMPUTES: tuple[Compute, ...] = ("fp32", "fp16", "int8")

TOLERANCE: Mapping[Compute, WeightStorage] = {"fp32": "fp32", "fp16": "fp16", "int8": "int4"}
"""What a tower computes in -> the weight storage whose parity thresholds hold: 8-bit activations are off by about as
much as 4-bit weights."""

DYNAMIC_OPERATORS = ("MatMul", "Gemm")
_TRANSFORMER_OPERATORS = {"Softmax", "LayerNormalization", "Attention"}
MIN_CALIBRATION_PICTURES = 16
_FP16_MAX = float(np.finfo(np.float16).max)
_MASKING = 1e38
"""What lies beyond stands for infinity in an attention mask: CLIP's holds -inf, BERT's the least number of float32."""

_EXTERNAL_ABOVE_BYTES = 4_000_000_000
"""Weights in float32 whose int8 form, beside what stays float, could come near protobuf's 2 GiB."""


def set_compute(
    model: ModelProto, compute: Compute, *, input_name: str = "", samples: Sequence[NDArray[Any]] = ()
) -> ModelProto:
    """Make a tower of the server compute in fp32 (as it is), fp16 or int8.

    int8 is dynamic for a transformer, static for a convolutional network.

    Args:
        model: float32.
        compute: one of COMPUTES.
        input_name, samples: to calibrate static int8 on.

    Raises:
        ExportError: the graph cannot be converted, or too few samples.
    """
    if compute == "fp32":
        return model
    if compute == "fp16":
        return to_fp16(model)
    if compute != "int8":
        raise ExportError(f"expected a tower to compute in one of {list(COMPUTES)}, got {compute!r}")
    if _count_convolutions(model) > 1:
        return quantize_static_int8(model, input_name, samples)
    return quantize_dynamic_int8(model)


def quantize_static_int8(
    model: ModelProto,
    input_name: str,
    samples: Sequence[NDArray[Any]],
    *,
    keep_float: Sequence[str] = (),
    float_nodes: Collection[str] = (),
) -> ModelProto:
    """Quantise a graph to static int8, QDQ, with a weight scale per output channel.

    Before that, channels are equalised (equalize.py) and biases corrected for rounding (bias_correction.py).

    Args:
        model: float32.
        input_name: its one input.
        samples: real inputs that show the ranges of the activations.
        keep_float: prefixes of the names of nodes before the network, which stay as they are.
        float_nodes: names of nodes of the network that stay float, beside those that always do (see sensitivity.py).

    Raises:
        ExportError: too few samples, or ONNX Runtime's quantiser cannot take the graph.
    """
    if len(samples) < MIN_CALIBRATION_PICTURES:
        raise ExportError(
            f"static int8 needs {MIN_CALIBRATION_PICTURES} or more pictures to calibrate on, got {len(samples)}: "
            "pass a folder with more of the pictures that the app will see"
        )
    before = [node for node in model.graph.node if keep_float and node.name.startswith(tuple(keep_float))]
    excluded = [node.name for node in [*before, *_find_sensitive(model, {node.name for node in before})]]
    excluded += [name for name in float_nodes if name not in excluded]
    equalised = equalize_channels(model, input_name, samples)
    corrected = correct_biases(equalised, input_name, samples, keep_float=excluded)
    with tempfile.TemporaryDirectory() as name, _quiet():
        source, target = Path(name, "float.onnx"), Path(name, "int8.onnx")
        onnx.save_model(corrected, source)
        try:
            quantize_static(
                str(source),
                str(target),
                _Samples(input_name, samples),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPERATORS),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                calibrate_method=CalibrationMethod.MinMax,
            )
            return onnx.load_model(target)
        except Exception as exc:  # the quantiser's errors share no base
            raise ExportError(f"ONNX Runtime cannot quantise the graph: {_first_line(exc)}") from exc


def quantize_dynamic_int8(model: ModelProto) -> ModelProto:
    """Quantise the matrix products of a text tower to int8; activations get their ranges at run time.

    Raises:
        ExportError: the graph is a convolutional network's, or cannot be quantised.
    """
    convolutions = _count_convolutions(model)
    if convolutions > 1:  # one is a vision transformer's patch embedding, which stays float
        raise ExportError(
            f"dynamic int8 is refused for a network with {convolutions} convolutions: their activations differ too "
            "much between channels for a range per tensor taken at run time (a depthwise network fell from 98.8% to "
            "0.09%, onnx/models#609), and ONNX Runtime runs it at half the speed of float32; use static int8"
        )
    with tempfile.TemporaryDirectory() as name, _quiet():
        source, target = Path(name, "float.onnx"), Path(name, "int8.onnx")
        save_onnx(model, source, shapes=False)  # those of weights that the quantiser turns over would contradict it
        try:
            quantize_dynamic(
                str(source),
                str(target),
                op_types_to_quantize=list(DYNAMIC_OPERATORS),
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=weight_size_bytes(model) > _EXTERNAL_ABOVE_BYTES,
            )
            return onnx.load_model(target)
        except Exception as exc:  # the quantiser's errors share no base
            raise ExportError(f"ONNX Runtime cannot quantise the graph: {_first_line(exc)}") from exc


def to_fp16(model: ModelProto) -> ModelProto:
    """Make a graph compute in fp16; inputs and outputs keep their types.

    Raises:
        ExportError: a weight above what fp16 can hold, or a graph that cannot be converted.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            largest = float(values[values < _MASKING].max(initial=0.0))  # a mask becomes fp16's own limit
            if largest > _FP16_MAX:
                raise ExportError(
                    f"the graph cannot be made fp16: {tensor.name} holds {largest:.3g}, fp16 ends at {_FP16_MAX:.0f}"
                )
    copied = ModelProto()
    copied.CopyFrom(model)
    try:
        with _quiet():
            infer_shapes(copied)  # the converter's own inference fails above 2 GiB
            half: ModelProto = convert_float_to_float16(
                copied, keep_io_types=True, max_finite_val=_FP16_MAX, disable_shape_infer=True
            )
            OnnxModel(half).topological_sort()  # the converter appends the casts of inputs at the end
    except Exception as exc:  # the converter's errors share no base
        raise ExportError(f"the graph cannot be made fp16: {_first_line(exc)}") from exc
    return half


def write_ort(source: Path, target: Path) -> None:
    """Write an ONNX file in ONNX Runtime's own format, which builds without an ONNX parser load (Android, iOS).

    Only optimisations that hold on every CPU are baked in.

    Raises:
        ExportError: ONNX Runtime cannot open or save the graph.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors have no common base
        raise ExportError(f"ONNX Runtime cannot write {target.name}: {_first_line(exc)}") from exc


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    """Hands one sample after the other to the calibration."""

    def __init__(self, input_name: str, samples: Sequence[NDArray[Any]]) -> None:
        self._input_name = input_name
        self._samples = iter(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next feed, None at the end."""
        sample = next(self._samples, None)
        return None if sample is None else {self._input_name: np.ascontiguousarray(sample)}


def _find_sensitive(model: ModelProto, before: set[str]) -> list[NodeProto]:
    """Find what costs little in float and much in int8: the first convolutions, sums of vectors, attention's products.

    The first are the one on pixels and a depthwise one straight behind it. A residual sum of feature maps [b, c, h, w]
    stays beside its 8-bit convolutions; one of tokens [b, L, d] does not. Measured on the demo's light encoder: error
    to spread .078 with none of it, .061 with the sums and the very first convolution, less with the second.
    """
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    network = [node for node in model.graph.node if node.name not in before]
    first: list[NodeProto] = []
    for node in network:
        seen = any(other.op_type == "Conv" for other in first)
        if node.op_type == "Conv" and seen and constants.get(node.input[1], [0, 0])[1] != 1:
            break
        first.append(node)
    vectors = [
        node
        for node in network
        if (node.op_type == "Add" and ranks.get(node.output[0]) != 4)
        or (node.op_type == "MatMul" and not constants.keys() & set(node.input))
    ]
    return first + vectors


def is_convolutional(model: ModelProto) -> bool:
    """Whether a graph is a convolutional network, with nothing of a transformer in it."""
    return _count_convolutions(model) > 1 and not _TRANSFORMER_OPERATORS & {node.op_type for node in model.graph.node}


def _count_convolutions(model: ModelProto) -> int:
    """Count convolutions whose kernel has more than one place, or whose weights are not there to tell."""
    shapes = {tensor.name: list(tensor.dims)[2:] for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return sum(any(side > 1 for side in shapes.get(node.input[1], [2])) for node in convolutions)


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's progress and its hints from the command's output."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
