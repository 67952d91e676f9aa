"""A device bundle of a few kilobytes whose encoder has the contract of a real one, and a naive copy of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from asymcir_common import Preprocessing, write_manifest
from asymcir_common.manifest import DEVICE_BUNDLE
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SENTENCE_LENGTH, WORD_WIDTH = 4, 8
WORD_SPACE = "tiny-word-space"
_SIDE = 4  # the tiny network sees 4 x 4 pixels
MAPS_SHAPE = (SENTENCE_LENGTH, _SIDE, _SIDE)


def make_weights(seed: int = 0) -> NDArray[np.int8]:
    """[3 * _SIDE * _SIDE, L * D], as int8, to be divided by 1000."""
    shape = (3 * _SIDE * _SIDE, SENTENCE_LENGTH * WORD_WIDTH)
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


def encode_naively(pixels: NDArray[np.uint8], seed: int = 0) -> NDArray[np.float32]:
    """What the encoder computes: an antialiased bilinear resize, which is Pillow's, then a linear map."""
    planes = [Image.fromarray(pixels[:, :, channel].astype(np.float32) / 255) for channel in range(3)]
    features = np.stack([plane.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR) for plane in planes]).reshape(-1)
    tokens = features.astype(np.float64) @ (make_weights(seed).astype(np.float64) / 1000.0)
    return tokens.reshape(SENTENCE_LENGTH, WORD_WIDTH).astype(np.float32)


def make_encoder(
    *,
    seed: int = 0,
    input_name: str = "pixels",
    input_type: int = TensorProto.UINT8,
    input_shape: tuple[Any, ...] = ("height", "width", 3),
    output_name: str = "sentence_tokens",
    length: int = SENTENCE_LENGTH,
    maps_shape: tuple[int, ...] | None = None,
    maps_name: str = "attention_maps",
    weights_as_int8: bool = False,
    divide_by_zero: bool = False,
) -> onnx.ModelProto:
    """An encoder graph: an antialiased resize of the whole picture, then a linear map.

    With `maps_shape`, MAPS_SHAPE or a wrong one, it also gives attention maps: the softmax of a plane's grey levels, of
    the first plane for the first token, and so on around.
    """
    weights = make_weights(seed)
    tokens_shape = [length, SENTENCE_LENGTH * WORD_WIDTH // length]
    constants = {
        "scale": np.float32(0.0 if divide_by_zero else 255.0),
        "batch_axis": np.array([0], np.int64),
        "sizes": np.array([1, 3, _SIDE, _SIDE], np.int64),
        "flat": np.array([1, -1], np.int64),
        "tokens_shape": np.array(tokens_shape, np.int64),
        "weights_scale": np.float32(0.001),
        "weights_zero": np.int8(0),
        **({"weights_int8": weights} if weights_as_int8 else {"weights": weights.astype(np.float32) / 1000}),
    }
    dequantize = [helper.make_node("DequantizeLinear", ["weights_int8", "weights_scale", "weights_zero"], ["weights"])]
    nodes = [
        helper.make_node("Cast", [input_name], ["float_pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float_pixels", "scale"], ["unit_pixels"]),
        helper.make_node("Transpose", ["unit_pixels"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "batch_axis"], ["batch"]),
        helper.make_node(
            "Resize",
            ["batch", "", "", "sizes"],
            ["small"],
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Reshape", ["small", "flat"], ["features"]),
        *(dequantize if weights_as_int8 else []),
        helper.make_node("MatMul", ["features", "weights"], ["flat_tokens"]),
        helper.make_node("Reshape", ["flat_tokens", "tokens_shape"], [output_name]),
    ]
    outputs = [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, tokens_shape)]
    if maps_shape is not None:
        constants |= {
            "of_token": np.arange(maps_shape[0], dtype=np.int64) % 3,
            "flat_planes": np.array([3, _SIDE * _SIDE], np.int64),
            "maps_shape": np.array(maps_shape, np.int64),
        }
        nodes += [
            helper.make_node("Reshape", ["small", "flat_planes"], ["rows"]),
            helper.make_node("Softmax", ["rows"], ["weighted"], axis=1),
            helper.make_node("Gather", ["weighted", "of_token"], ["looked_at"], axis=0),
            helper.make_node("Reshape", ["looked_at", "maps_shape"], [maps_name]),
        ]
        outputs.append(helper.make_tensor_value_info(maps_name, TensorProto.FLOAT, maps_shape))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, input_type, input_shape)],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def write_device_bundle(
    folder: Path,
    models: Mapping[str, onnx.ModelProto | bytes] | None = None,
    *,
    drop: str = "",
    **properties: Any,
) -> Path:
    """Write a device bundle.

    Args:
        folder: made here.
        models: precision -> graph (or the bytes of a file that is none); None for one fp32 encoder.
        drop: a property to leave out.
        properties: to set otherwise.
    """
    folder.mkdir(parents=True)
    models = {"fp32": make_encoder()} if models is None else models
    names = {name: "encoder.onnx" if name == "fp32" else f"encoder.{name}.onnx" for name in models}
    for precision, model in models.items():
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (folder / names[precision]).write_bytes(data)
    spec = Preprocessing(size=_SIDE, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    record = {
        "word_space": WORD_SPACE,
        "sentence_length": SENTENCE_LENGTH,
        "word_width": WORD_WIDTH,
        "preprocessing": spec.to_json(),
        "encoders": names,
        "default_encoder": next(iter(names)),
        "foundation": "tiny",
        **properties,
    }
    record.pop(drop, None)
    write_manifest(folder, format=DEVICE_BUNDLE, properties=record)
    return folder
