import numpy as np
import onnxruntime
import pytest
from asymcir_export.device_graph import build_preprocessing_graph
from asymcir_protos import Preprocessing, preprocess
from numpy.typing import NDArray

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
