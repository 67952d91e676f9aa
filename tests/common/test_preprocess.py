"""`preprocess` against torchvision's Resize and CenterCrop on Pillow, which open_clip uses."""

import numpy as np
import pytest
from asymcir_common import ImageError, Preprocessing, preprocess
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (32, 32), (33, 32), (5, 7), (300, 200), (201, 333), (64, 65), (640, 33), (31, 500), (1, 40)],
)
def test_equals_torchvision(height: int, width: int, size: int, interpolation: str) -> None:
    spec = Preprocessing(size=size, interpolation=interpolation, mean=MEAN, std=STD)  # type: ignore[arg-type]
    pixels = _noise(height, width)
    mode = transforms.InterpolationMode(interpolation)
    reference = transforms.Compose([transforms.Resize(size, mode), transforms.CenterCrop(size)])
    expected = np.asarray(reference(Image.fromarray(pixels)))
    found = preprocess(pixels, spec)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_squash_equals_torchvision(interpolation: str) -> None:
    spec = Preprocessing(size=32, interpolation=interpolation, mean=MEAN, std=STD, resize="squash")  # type: ignore[arg-type]
    pixels = _noise(50, 123)
    reference = transforms.Resize((32, 32), transforms.InterpolationMode(interpolation))
    np.testing.assert_array_equal(preprocess(pixels, spec), np.asarray(reference(Image.fromarray(pixels))))


def test_strip_of_fifty_thousand_pixels_needs_no_giant_intermediate() -> None:
    spec = Preprocessing(size=64, interpolation="bilinear", mean=MEAN, std=STD)
    pixels = np.full((1, 50_000, 3), 7, np.uint8)
    np.testing.assert_array_equal(preprocess(pixels, spec), 7)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_json_round_trip(resize: str) -> None:
    spec = Preprocessing(size=64, interpolation="bicubic", mean=MEAN, std=STD, resize=resize)  # type: ignore[arg-type]
    assert Preprocessing.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"size": "large"},
        {"size": None},
        {"interpolation": "nearest"},
        {"resize": "pad"},
        {"crop": "none"},
        {"mean": [0.5, 0.5]},
        {"mean": 0.5},
        {"std": ["a", "b", "c"]},
    ],
)
def test_wrong_json(changes: dict[str, object]) -> None:
    record = Preprocessing(size=64, interpolation="bilinear", mean=MEAN, std=STD).to_json()
    with pytest.raises(ImageError):
        Preprocessing.from_json({**record, **changes})
    for key in changes:
        with pytest.raises(ImageError):
            Preprocessing.from_json({name: value for name, value in record.items() if name != key})


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_wrong_pixels(pixels: NDArray[np.uint8]) -> None:
    spec = Preprocessing(size=4, interpolation="bilinear", mean=MEAN, std=STD)
    with pytest.raises(ImageError, match=r"\[h, w, 3\] uint8"):
        preprocess(pixels, spec)
