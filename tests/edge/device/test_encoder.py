from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_device_bundle as tiny
from asymcir_common import BundleError, ImageError
from asymcir_common.pictures import MAX_ASPECT_RATIO
from asymcir_edge import DeviceBundle, EncoderError, QueryEncoder
from numpy.typing import NDArray
from PIL import Image


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _open(folder: Path, *models: onnx.ModelProto | bytes, **properties: Any) -> QueryEncoder:
    encoders = dict(zip(["fp32", "other"], models, strict=False)) or None
    return QueryEncoder(DeviceBundle.load(tiny.write_device_bundle(folder, encoders, **properties)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (37, 12), (64, 200), (1, MAX_ASPECT_RATIO), (500, 10)])
def test_tokens_are_those_of_the_naive_encoder(tmp_path: Path, height: int, width: int) -> None:
    pixels = _noise(height, width)
    tokens = _open(tmp_path / "b").encode_image(pixels)
    assert tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, tiny.encode_naively(pixels), atol=1e-5)


def test_encode_file_and_views(tmp_path: Path) -> None:
    encoder = _open(tmp_path / "b")
    pixels = _noise(20, 30)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(encoder.encode_file(tmp_path / "picture.png"), encoder.encode_image(pixels))
    np.testing.assert_allclose(
        encoder.encode_image(pixels[::-1, ::2]), tiny.encode_naively(pixels[::-1, ::2]), atol=1e-5
    )


def test_weights_stored_as_int8_are_computed_with_in_float(tmp_path: Path) -> None:
    model, pixels = tiny.make_encoder(weights_as_int8=True), _noise(16, 16)
    encoder = _open(tmp_path / "float", model, weight_storage="int8")
    np.testing.assert_allclose(encoder.encode_image(pixels), tiny.encode_naively(pixels), atol=1e-5)


def test_precision_and_threads(tmp_path: Path) -> None:
    models = {"fp32": tiny.make_encoder(seed=0), "other": tiny.make_encoder(seed=1)}
    bundle = DeviceBundle.load(tiny.write_device_bundle(tmp_path / "b", models))
    pixels = _noise(8, 8)
    encoder = QueryEncoder(bundle, precision="other", threads=2)
    assert encoder.precision == "other"
    np.testing.assert_allclose(encoder.encode_image(pixels), tiny.encode_naively(pixels, seed=1), atol=1e-5)
    assert QueryEncoder(bundle).precision == "fp32"
    with pytest.raises(BundleError, match="'int4'"):
        QueryEncoder(bundle, precision="int4")
    for threads in (0, 257):
        with pytest.raises(EncoderError, match="1 to 256 threads"):
            QueryEncoder(bundle, threads=threads)


def test_calls_at_the_same_time(tmp_path: Path) -> None:
    encoder = _open(tmp_path / "b")
    pictures = [_noise(10 + i, 20) for i in range(32)]
    with ThreadPoolExecutor(4) as pool:
        for pixels, tokens in zip(pictures, pool.map(encoder.encode_image, pictures), strict=True):
            np.testing.assert_allclose(tokens, tiny.encode_naively(pixels), atol=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_wrong_pixels(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match=r"\[h, w, 3\] uint8"):
        _open(tmp_path / "b").encode_image(pixels)


@pytest.mark.parametrize("shape", [(1, MAX_ASPECT_RATIO + 1, 3), (50_000, 9, 3)])
def test_strip_is_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ImageError, match="aspect ratio of at most 50"):
        _open(tmp_path / "b").encode_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("graph", "pattern"),
    [
        ({"input_name": "image"}, "graph inputs"),
        ({"input_type": onnx.TensorProto.FLOAT}, "graph inputs"),
        ({"input_shape": ("height", "width", "channels")}, "graph inputs"),
        ({"input_shape": (64, 64, 3)}, "graph inputs"),
        ({"output_name": "embedding"}, "graph outputs"),
        ({"length": 2}, "graph outputs"),
        ({"maps_shape": tiny.MAPS_SHAPE, "maps_name": "scores"}, "graph outputs"),
        ({"maps_shape": (3, 4, 4)}, "graph outputs"),
        ({"maps_shape": (4, 16)}, "graph outputs"),
    ],
)
def test_graph_that_is_not_what_the_manifest_says(tmp_path: Path, graph: dict[str, Any], pattern: str) -> None:
    with pytest.raises(EncoderError, match=pattern) as caught:
        _open(tmp_path / "b", tiny.make_encoder(**graph))
    assert "\n" not in str(caught.value)


def test_manifest_that_is_not_what_the_graph_says(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="graph outputs"):
        _open(tmp_path / "b", word_width=9)


@pytest.mark.parametrize("data", [b"", b"not a graph", tiny.make_encoder().SerializeToString()[:500]])
def test_file_that_is_no_graph(tmp_path: Path, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EncoderError, match="cannot open") as caught:
        _open(tmp_path / "b", data)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_tokens_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="finite"):
        _open(tmp_path / "b", tiny.make_encoder(divide_by_zero=True)).encode_image(_noise(4, 4))


def test_maps_come_when_they_are_asked_for(tmp_path: Path) -> None:
    encoder, plain = _open(tmp_path / "maps", tiny.make_encoder(maps_shape=tiny.MAPS_SHAPE)), _open(tmp_path / "plain")
    assert encoder.gives_maps and not plain.gives_maps
    pixels = _noise(20, 30)
    tokens, maps = encoder.encode_with_maps(pixels)
    np.testing.assert_array_equal(tokens, encoder.encode_image(pixels))
    np.testing.assert_array_equal(tokens, plain.encode_image(pixels))
    assert maps.shape == tiny.MAPS_SHAPE and maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1.0, rtol=1e-5)
    with pytest.raises(ImageError, match="uint8"):
        encoder.encode_with_maps(pixels.astype(np.float32))


def test_an_encoder_of_before_says_how_to_get_maps(tmp_path: Path) -> None:
    message = r"b/encoder\.onnx gives no attention_maps: export the bundle again with `asymcir export device`"
    with pytest.raises(BundleError, match=message):
        _open(tmp_path / "b").encode_with_maps(_noise(4, 4))
