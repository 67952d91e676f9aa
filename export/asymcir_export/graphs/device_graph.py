"""The device encoder's graph: a picture of any size in, sentence tokens out, and what each token looks at.

Resizing, cropping and normalisation are operators of the graph, so that no app re-implements them. The reference is
`asymcir_common.preprocess`, which is Pillow: it resizes the width, rounds to grey levels, resizes the height and rounds
again, with weights of 22 bits, and so does the graph. Where nothing is shrunk the two are equal. Shrunk pictures differ
by one grey level in at most 0.3% of their values, noise included: ONNX Runtime's weights start as float32. Pillow 13
resizes the height first where that is shrunk much more than the width, which it judges before the crop: pictures of
about 2:3 and taller. Then up to a fifth of the values differ by one level, and in bicubic ones single pixels at hard
edges by more, because overshoot is clipped in between; earlier versions of Pillow agree with the graph there too.

A picture with both sides at least S, which is what cameras and galleries give, takes the short way: ONNX Runtime's
antialiased Resize, a port of Pillow's, shrinks it (`exclude_outside`: without it the border is repeated, where Pillow
leaves it out), copies it where it has its size already, and the centre is cut out. A smaller one takes the long way:
Resize shrinks what has to be shrunk, and what has to be enlarged is then interpolated at the places that survive the
crop alone, so that a 1 x 50,000 strip needs no giant intermediate picture.

An `If` chooses. Its branches take nothing from outside but `pixels`: tools that sort nodes do not look into branches.

Normalisation is one product and one sum over the planes. It is not folded into the first convolution: where that pads,
its zeros stand for the mean, so the shift cannot go in exactly.

Notation: S side of the square that the network sees, L sentence tokens, D word-embedding width, h, w sides of the
feature map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from asymcir_common import Preprocessing
from asymcir_training import LightEncoder
from numpy.typing import ArrayLike, DTypeLike
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from asymcir_export.errors import ExportError
from asymcir_export.graphs.writer import IR_VERSION, OPSET, to_onnx

INPUT_NAME = "pixels"
OUTPUT_NAME = "sentence_tokens"
MAPS_NAME = "attention_maps"
_NORMALISED = "normalised_pixels"
PREPROCESSING_PREFIX = "preprocess_"
"""Of the names of all nodes before the network."""

_SHRUNK, _RESIZED = f"{PREPROCESSING_PREFIX}shrunk", f"{PREPROCESSING_PREFIX}resized"

_PREFIX = "encoder_"
_CUBIC_A = -0.5  # Pillow's; ONNX's default is -0.75
_WEIGHT_BITS = 22  # of Pillow's weights, behind the binary point


def build_device_graph(encoder: nn.Module, preprocessing: Preprocessing, example: Tensor) -> ModelProto:
    """Put preprocessing and light encoder into one graph; see `build_network_graph` and `join_preprocessing`."""
    return join_preprocessing(build_network_graph(encoder, example), preprocessing)


def build_network_graph(encoder: nn.Module, example: Tensor) -> ModelProto:
    """Convert the light encoder alone.

    Args:
        encoder: [1, 3, S, S] normalised -> sentence tokens [1, L, D], in eval mode.
        example: [1, 3, S, S], float32.

    Returns:
        The graph: `normalised_pixels` [1, 3, S, S] -> `tokens` [1, L, D], and of a light encoder also `maps`
        [1, L, h, w], the weights that the token learner pools with: nothing is computed for them alone.

    Raises:
        ExportError: the encoder cannot be converted.
    """
    if isinstance(encoder, LightEncoder):
        shown = LightEncoderWithMaps(encoder).train(encoder.training)
        return to_onnx(shown, {_NORMALISED: example}, outputs=["tokens", "maps"], axes={})
    return to_onnx(encoder, {_NORMALISED: example}, outputs=["tokens"], axes={})


class LightEncoderWithMaps(nn.Module):
    """A light encoder that returns its attention maps beside the tokens."""

    def __init__(self, encoder: LightEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Turn normalised pixels [1, 3, S, S] into tokens [1, L, D] and maps [1, L, h, w]."""
        return self.encoder.forward_with_maps(pixels)


def join_preprocessing(network: ModelProto, preprocessing: Preprocessing) -> ModelProto:
    """Put the preprocessing before a network.

    Args:
        network: from `build_network_graph`, in any precision, its input and output float32.
        preprocessing: what the encoder was trained with.

    Returns:
        The graph: `pixels` uint8 [height, width, 3], any size -> `sentence_tokens` float32 [L, D], and where the
        network gives maps `attention_maps` float32 [L, h, w].

    Raises:
        ExportError: the network gives another shape.
    """
    front = build_preprocessing_graph(preprocessing)
    core = onnx.compose.add_prefix(network, _PREFIX)
    model: ModelProto = onnx.compose.merge_models(front, core, io_map=[(_NORMALISED, f"{_PREFIX}{_NORMALISED}")])
    shapes = [[axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in model.graph.output]
    if len(shapes[0]) != 3 or any(shape[0] != 1 or 0 in shape for shape in shapes):
        raise ExportError(f"expected the encoder to give [1, L, D], got {shapes[0]}")
    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "batch_position")
    model.graph.initializer.append(axes)
    given = [value.name for value in model.graph.output]
    del model.graph.output[:]
    for value, name, shape in zip(given, (OUTPUT_NAME, MAPS_NAME), shapes, strict=False):
        model.graph.node.append(helper.make_node("Squeeze", [value, axes.name], [name]))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[1:]))
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]  # merging lists the same set twice, which ONNX Runtime's quantiser refuses
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    model.graph.name = "asymcir"
    model.producer_name, model.producer_version = "asymcir", ""
    return model


def cut_preprocessing(model: ModelProto, size: int) -> ModelProto:
    """Take the preprocessing off again.

    Args:
        model: from `join_preprocessing`, or what was made from it with the preprocessing left as it was.
        size: S.

    Returns:
        The graph: `normalised_pixels` float32 [1, 3, S, S] -> the outputs of `model`.
    """
    network = ModelProto()
    network.CopyFrom(model)
    graph = network.graph
    lists: list[Any] = [graph.node, graph.initializer, graph.value_info]
    for records in lists:
        kept = [record for record in records if not record.name.startswith(PREPROCESSING_PREFIX)]
        del records[:]
        records.extend(record for record in kept if record.name != _NORMALISED)  # declared as the input instead
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(_NORMALISED, TensorProto.FLOAT, [1, 3, size, size]))
    return network


def keep_preprocessing(model: ModelProto, size: int) -> ModelProto:
    """Keep the preprocessing alone, to see what it makes of a picture.

    Args:
        model: as for `cut_preprocessing`.
        size: S.

    Returns:
        The graph: `pixels` uint8 [height, width, 3] -> `normalised_pixels` float32 [1, 3, S, S].
    """
    front = ModelProto()
    front.CopyFrom(model)
    graph = front.graph
    lists: list[Any] = [graph.node, graph.initializer, graph.value_info]
    for records in lists:
        kept = [record for record in records if record.name.startswith(PREPROCESSING_PREFIX)]
        del records[:]
        records.extend(kept)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(_NORMALISED, TensorProto.FLOAT, [1, 3, size, size]))
    return front


def build_preprocessing_graph(spec: Preprocessing) -> ModelProto:
    """Build the graph of a preprocessing: uint8 [height, width, 3] -> `normalised_pixels` float32 [1, 3, S, S]."""
    graph = _Graph()
    shortest = graph.op("ReduceMin", graph.op("Shape", INPUT_NAME, end=2), keepdims=0)
    picture = graph.op(
        "If",
        graph.op("GreaterOrEqual", shortest, graph.constant(spec.size)),
        then_branch=_shrink(spec).to_graph("shrink", [], _SHRUNK, spec.size),
        else_branch=_resize(spec).to_graph("resize", [], _RESIZED, spec.size),
    )
    scale = (1.0 / (255.0 * np.asarray(spec.std))).reshape(1, 3, 1, 1)
    offset = (-np.asarray(spec.mean) / np.asarray(spec.std)).reshape(1, 3, 1, 1)
    picture = graph.op("Mul", picture, graph.constant(scale, np.float32))
    graph.op("Add", picture, graph.constant(offset, np.float32), output=_NORMALISED)
    pixels = helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["height", "width", 3])
    whole = graph.to_graph("preprocessing", [pixels], _NORMALISED, spec.size)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _shrink(spec: Preprocessing) -> "_Graph":
    """Where no side has to be enlarged: shrink, and cut the centre out: grey levels, float32 [1, 3, S, S]."""
    graph = _Graph("shrink_")
    one, two, side = graph.constant([1]), graph.constant([2]), graph.constant([spec.size])
    sizes = graph.op("Shape", INPUT_NAME, end=2)  # [2]
    if spec.resize == "squash":
        resized = graph.constant([spec.size, spec.size])
    else:
        resized = graph.op("Div", graph.op("Mul", sizes, side), graph.op("ReduceMin", sizes))
    picture = _add_resize(graph, spec, graph.op("Concat", one, resized, graph.constant([3]), axis=0))
    if spec.resize == "shortest":
        start = _add_crop_offset(graph, graph.op("Sub", resized, side), two)  # [2]
        picture = graph.op("Slice", picture, start, graph.op("Add", start, side), graph.constant([1, 2]))
    picture = graph.op("Transpose", picture, perm=[0, 3, 1, 2])
    graph.op("Cast", picture, to=TensorProto.FLOAT, output=_SHRUNK)
    return graph


def _resize(spec: Preprocessing) -> "_Graph":
    """Where a side has to be enlarged, or both: grey levels, float32 [1, 3, S, S]."""
    graph = _Graph("resize_")
    one = graph.constant([1])
    shape = graph.op("Shape", INPUT_NAME)
    sizes = [graph.op("Slice", shape, graph.constant([i]), graph.constant([i + 1])) for i in (0, 1)]
    side = graph.constant([spec.size])
    if spec.resize == "squash":
        resized = [side, side]
    else:
        shortest = graph.op("Min", *sizes)
        resized = [graph.op("Div", graph.op("Mul", side, size), shortest) for size in sizes]
    shrunk = [graph.op("Min", size, target) for size, target in zip(sizes, resized, strict=True)]
    picture = _add_resize(graph, spec, graph.op("Concat", one, *shrunk, graph.constant([3]), axis=0))
    places = [_Taps(graph, spec, source, target) for source, target in zip(shrunk, resized, strict=True)]
    picture = graph.op("Transpose", picture, perm=[0, 3, 1, 2])  # planes: half of what the rest costs on channels last
    rows = graph.constant([2])
    picture = graph.op("Slice", picture, places[0].first, places[0].end, rows)  # rows that do not matter cost nothing
    for axis, start in ((3, None), (2, places[0].first)):
        picture = graph.op("Cast", picture, to=TensorProto.INT32)
        picture = places[axis - 2].apply(picture, axis=axis, start=start)
    graph.op("Cast", picture, to=TensorProto.FLOAT, output=_RESIZED)  # [1, 3, S, S]
    return graph


class _Graph:
    """Collects nodes and constants and names them."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = PREPROCESSING_PREFIX + prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, values: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        name = f"{self._prefix}constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = f"{self._prefix}{len(self._nodes)}"
        value = output or name
        self._nodes.append(helper.make_node(kind, list(inputs), [value], name=f"{name}_{kind}", **attributes))
        return value

    def to_graph(self, name: str, inputs: Sequence[onnx.ValueInfoProto], output: str, size: int) -> onnx.GraphProto:
        """Close the graph; its output is float32 [1, 3, size, size]."""
        declared = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 3, size, size])
        return helper.make_graph(self._nodes, name, inputs, [declared], self._constants)


class _Taps:
    """Where the S places of one axis that survive the crop lie in the source, and their neighbours' weights.

    As Pillow computes them. `preprocess` gives it the crop as a box, whose edges it keeps as float32: with n source
    places, r resized ones and crop offset o, the box goes from b = o n / r over S n / r, and place i has its centre at
    b + (i + 0.5) n / r. Weights are whole multiples of 2 ** -_WEIGHT_BITS. Both decide what lies half way between two
    grey levels, as every second place does where 2 become 3. Where nothing is enlarged (n = r) the weights are 1 and
    0, which is the crop.
    """

    def __init__(self, graph: _Graph, spec: Preprocessing, source: str, resized: str) -> None:
        self._graph = graph
        one, two, side = graph.constant([1]), graph.constant([2]), graph.constant([spec.size], np.float64)
        offset = _add_crop_offset(graph, graph.op("Sub", resized, graph.constant([spec.size])), two)
        length = graph.op("Cast", source, to=TensorProto.DOUBLE)
        scale = graph.op("Div", length, graph.op("Cast", resized, to=TensorProto.DOUBLE))
        edges = graph.op("Concat", offset, graph.op("Add", offset, graph.constant([spec.size])), axis=0)
        edges = graph.op("Cast", edges, to=TensorProto.DOUBLE)
        edges = graph.op("Cast", graph.op("Min", graph.op("Mul", edges, scale), length), to=TensorProto.FLOAT)  # [2]
        start, end = graph.op("Slice", edges, graph.constant([0]), one), graph.op("Slice", edges, one, two)
        pitch = graph.op("Div", graph.op("Cast", graph.op("Sub", end, start), to=TensorProto.DOUBLE), side)
        centre = graph.op("Mul", graph.constant(np.arange(spec.size) + 0.5, np.float64), pitch)
        centre = graph.op("Add", centre, graph.op("Cast", start, to=TensorProto.DOUBLE))  # [S]
        centre = graph.op("Sub", centre, graph.constant([0.5], np.float64))  # source places lie at 0, 1, 2, ...
        floor = graph.op("Floor", centre)
        distance = graph.op("Sub", centre, floor)
        below = graph.op("Cast", floor, to=TensorProto.INT64)  # [S], from -1
        last = graph.op("Sub", source, one)
        steps = (0, 1) if spec.interpolation == "bilinear" else (-1, 0, 1, 2)
        self._indices: list[str] = []
        weights: list[str] = []
        for step in steps:
            wanted = graph.op("Add", below, graph.constant([step]))
            index = graph.op("Min", graph.op("Max", wanted, graph.constant([0])), last)
            inside = graph.op("Cast", graph.op("Equal", wanted, index), to=TensorProto.DOUBLE)
            away = graph.op("Abs", graph.op("Sub", distance, graph.constant([step], np.float64)))
            self._indices.append(index)
            weights.append(graph.op("Mul", inside, _kernel(graph, spec, away, near=step in (0, 1))))
        unit = graph.op("Div", graph.constant([2**_WEIGHT_BITS], np.float64), graph.op("Sum", *weights))
        weights = [graph.op("Round", graph.op("Mul", weight, unit)) for weight in weights]
        self._weights = [graph.op("Cast", weight, to=TensorProto.INT32) for weight in weights]
        self.first = graph.op("Slice", self._indices[0], graph.constant([0]), one)
        last_index = graph.op("Slice", self._indices[-1], graph.constant([-1]), graph.constant([spec.size]))
        self.end = graph.op("Add", last_index, one)

    def apply(self, picture: str, *, axis: int, start: str | None) -> str:
        """Interpolate one axis of [1, 3, height, width], int32, to grey levels, uint32; `start` was cut off before."""
        graph = self._graph
        shape = graph.constant([1 if i != axis else -1 for i in range(4)])
        total = graph.constant(2 ** (_WEIGHT_BITS - 1), np.int32)
        for index, weight in zip(self._indices, self._weights, strict=True):
            place = index if start is None else graph.op("Sub", index, start)
            taken = graph.op("Gather", picture, place, axis=axis)
            product = graph.op("Mul", taken, graph.op("Reshape", weight, shape))
            total = graph.op("Add", product, total)
        limits = graph.constant(0, np.int32), graph.constant((256 << _WEIGHT_BITS) - 1, np.int32)
        total = graph.op("Cast", graph.op("Clip", total, *limits), to=TensorProto.UINT32)
        return graph.op("BitShift", total, graph.constant([_WEIGHT_BITS], np.uint32), direction="RIGHT")


def _add_resize(graph: _Graph, spec: Preprocessing, shape: str) -> str:
    """Shrink `pixels` to a shape [1, height, width, 3] as Pillow does: uint8."""
    return graph.op(
        "Resize",
        graph.op("Unsqueeze", INPUT_NAME, graph.constant([0])),
        "",
        "",
        shape,
        mode="linear" if spec.interpolation == "bilinear" else "cubic",
        cubic_coeff_a=_CUBIC_A,
        antialias=1,
        exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )


def _add_crop_offset(graph: _Graph, excess: str, two: str) -> str:
    """Halve what is to be cut off, half to even, as torchvision does."""
    odd, half = graph.op("Mod", excess, two), graph.op("Div", excess, two)
    return graph.op("Add", half, graph.op("Mul", odd, graph.op("Mod", half, two)))


def _kernel(graph: _Graph, spec: Preprocessing, away: str, *, near: bool) -> str:
    """Return Pillow's filter at the distance `away`; `near`: it is within 1."""
    if spec.interpolation == "bilinear":
        return graph.op("Sub", graph.constant([1.0], np.float64), away)
    a = _CUBIC_A
    coefficients = (a + 2, -(a + 3), 0.0, 1.0) if near else (a, -5 * a, 8 * a, -4 * a)  # cubic convolution, Keys 1981
    value = graph.constant([coefficients[0]], np.float64)
    for coefficient in coefficients[1:]:
        value = graph.op("Add", graph.op("Mul", value, away), graph.constant([coefficient], np.float64))
    return value
