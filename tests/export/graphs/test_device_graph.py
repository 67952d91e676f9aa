from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from asymcir_common import Preprocessing, preprocess
from asymcir_export.graphs.cost import measure_cost
from asymcir_export.graphs.device_graph import (
    PREPROCESSING_PREFIX,
    build_device_graph,
    build_network_graph,
    build_preprocessing_graph,
    cut_preprocessing,
    join_preprocessing,
)
from asymcir_export.graphs.writer import write_onnx
from asymcir_export.int8.quantize import quantize_static_int8, to_fp16, write_ort
from asymcir_training import LightEncoder, normalise_pixels
from numpy.typing import NDArray
from onnx import AttributeProto
from torch import nn

SIZES = [
    (1, 1),
    (1, 2),
    (3, 1),
    (5, 9),
    (31, 32),
    (32, 32),
    (33, 32),
    (33, 100),
    (97, 50),
    (480, 641),
    (1, 3000),
    (3000, 2),
    (1201, 1600),
]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def make_picture(height: int, width: int, kind: str) -> NDArray[np.uint8]:
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    ramps = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x // 7 + y // 5) % 2 * 255]
    return np.stack(ramps, axis=2).astype(np.uint8)


def run_in_graph(picture: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float64]:
    """Grey levels [S, S, 3] that the graph gives."""
    session = onnxruntime.InferenceSession(build_preprocessing_graph(spec).SerializeToString())
    (normalised,) = session.run(None, {"pixels": picture})
    assert normalised.shape == (1, 3, spec.size, spec.size)
    levels: NDArray[np.float64] = (normalised[0].transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)) * 255
    return levels


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("size", [1, 32, 65])
@pytest.mark.parametrize("kind", ["noise", "ramps"])
def test_bilinear_agrees_with_pillow_to_one_grey_level(resize: str, size: int, kind: str) -> None:
    spec = Preprocessing(size=size, interpolation="bilinear", mean=MEAN, std=STD, resize=resize)
    for height, width in SIZES:
        picture = make_picture(height, width, kind)
        difference = np.abs(run_in_graph(picture, spec) - preprocess(picture, spec))
        assert difference.max() < 1.01, (height, width)
        assert difference.mean() < 0.5, (height, width)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_enlarged_pictures_are_pillows_to_the_grey_level(resize: str, interpolation: str) -> None:
    spec = Preprocessing(size=64, interpolation=interpolation, mean=MEAN, std=STD, resize=resize)
    for height, width in ((1, 1), (20, 20), (42, 64), (64, 42), (31, 97), (40, 60), (63, 64), (1, 3000)):
        picture = make_picture(height, width, "noise")
        np.testing.assert_allclose(run_in_graph(picture, spec), preprocess(picture, spec), atol=1e-4)


@pytest.mark.parametrize("size", [32, 65])
def test_bicubic_agrees_with_pillow(size: int) -> None:
    # Pillow chooses which axis it resizes first, and rounds and clips in between: overshoot clipped in the one order is
    # not in the other, so single pixels of a checkerboard may differ by more than a level, never the picture.
    spec = Preprocessing(size=size, interpolation="bicubic", mean=MEAN, std=STD)
    for height, width in SIZES:
        picture = make_picture(height, width, "ramps")
        difference = np.abs(run_in_graph(picture, spec) - preprocess(picture, spec))
        assert difference.mean() < 1.0, (height, width)
        assert np.quantile(difference, 0.9) < 2.5, (height, width)


def test_a_long_strip_needs_no_giant_intermediate() -> None:
    # Resized as a whole it would be 64 x 3,200,000 pixels.
    spec = Preprocessing(size=64, interpolation="bilinear", mean=MEAN, std=STD)
    picture = make_picture(1, 50_000, "noise")
    assert np.abs(run_in_graph(picture, spec) - preprocess(picture, spec)).max() < 1.01


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_picture_of_the_models_size_keeps_its_pixels(resize: str, interpolation: str) -> None:
    spec = Preprocessing(size=33, interpolation=interpolation, mean=MEAN, std=STD, resize=resize)
    picture = make_picture(33, 33, "noise")
    np.testing.assert_allclose(run_in_graph(picture, spec), picture, atol=1e-4)
    if resize == "shortest":  # nothing is resized either where only one side is longer
        wide = make_picture(33, 36, "noise")
        np.testing.assert_allclose(run_in_graph(wide, spec), wide[:, 2:35], atol=1e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_short_way_gives_what_the_long_one_gives(interpolation: str) -> None:
    spec = Preprocessing(size=32, interpolation=interpolation, mean=MEAN, std=STD)
    model = build_preprocessing_graph(spec)
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    branches = {item.name: item.g for item in choice.attribute}
    branches["then_branch"].CopyFrom(branches["else_branch"])
    always_long = onnxruntime.InferenceSession(model.SerializeToString())
    session = onnxruntime.InferenceSession(build_preprocessing_graph(spec).SerializeToString())
    for height, width in ((32, 32), (32, 90), (33, 100), (97, 50), (480, 641)):
        picture = make_picture(height, width, "ramps")
        feed = {"pixels": picture}
        np.testing.assert_array_equal(session.run(None, feed)[0], always_long.run(None, feed)[0])


def test_branches_take_nothing_from_outside_but_the_picture() -> None:
    # Tools that sort the nodes (ONNX Runtime's quantiser) do not see what a branch takes from outside.
    model = build_preprocessing_graph(Preprocessing(size=32, interpolation="bicubic", mean=MEAN, std=STD))
    names = [node.name for node in model.graph.node]
    for node in model.graph.node:
        for branch in (item.g for item in node.attribute if item.type == AttributeProto.GRAPH):
            known = {tensor.name for tensor in branch.initializer} | {"pixels", ""}
            for inner in branch.node:
                assert known.issuperset(inner.input), inner.name
                known.update(inner.output)
            names += [inner.name for inner in branch.node]
    assert len(set(names)) == len(names) > 50
    assert all(name.startswith(PREPROCESSING_PREFIX) for name in names)


def test_a_light_encoder_tells_what_its_tokens_look_at_in_every_precision(
    light_encoder: LightEncoder, tmp_path: Path
) -> None:
    spec = light_encoder.preprocessing
    network = build_network_graph(light_encoder, torch.zeros(1, 3, spec.size, spec.size))
    graph = join_preprocessing(network, spec)
    pictures = [make_picture(spec.size, spec.size, kind) for kind in ("noise", "ramps")] * 8
    write_onnx(graph, tmp_path / "fp32.onnx")
    write_onnx(join_preprocessing(to_fp16(network), spec), tmp_path / "fp16.onnx")
    write_onnx(
        quantize_static_int8(graph, "pixels", pictures, keep_float=[PREPROCESSING_PREFIX]), tmp_path / "int8.onnx"
    )
    write_ort(tmp_path / "fp32.onnx", tmp_path / "fp32.ort")
    with torch.inference_mode():
        tokens, maps = light_encoder.forward_with_maps(normalise_pixels(torch.from_numpy(np.stack(pictures[:2])), spec))
    tolerances = {"fp32.onnx": 1e-5, "fp32.ort": 1e-5, "fp16.onnx": 5e-3, "int8.onnx": 1.0}
    for name, tolerance in tolerances.items():
        session = onnxruntime.InferenceSession(str(tmp_path / name))
        assert [(value.name, value.type) for value in session.get_outputs()] == [
            ("sentence_tokens", "tensor(float)"),
            ("attention_maps", "tensor(float)"),
        ]
        for number in (0, 1):
            found = session.run(None, {"pixels": pictures[number]})
            assert found[0].shape == tokens.shape[1:] and found[1].shape == maps.shape[1:] == (6, 2, 2), name
            np.testing.assert_allclose(found[1].sum(axis=(1, 2)), 1.0, atol=1e-2)
            np.testing.assert_allclose(found[1], maps[number].numpy(), atol=tolerance)
            (alone,) = session.run(["sentence_tokens"], {"pixels": pictures[number]})
            np.testing.assert_array_equal(alone, found[0])
    assert measure_cost(graph) == measure_cost(network)  # the maps cost nothing


def test_the_preprocessing_can_be_taken_off_again() -> None:
    spec = Preprocessing(size=32, interpolation="bilinear", mean=MEAN, std=STD)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(2)).eval()  # [1, 4, 1024]
    graph = build_device_graph(encoder, spec, torch.zeros(1, 3, 32, 32))
    network = cut_preprocessing(graph, 32)
    onnx.checker.check_model(network, full_check=True)
    picture = make_picture(40, 50, "noise")
    (whole,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"pixels": picture})
    front = onnxruntime.InferenceSession(build_preprocessing_graph(spec).SerializeToString())
    feed = dict(zip(["normalised_pixels"], front.run(None, {"pixels": picture}), strict=True))
    (found,) = onnxruntime.InferenceSession(network.SerializeToString()).run(None, feed)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert not any(node.name.startswith(PREPROCESSING_PREFIX) for node in network.graph.node)
