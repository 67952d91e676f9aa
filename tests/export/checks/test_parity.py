import zipfile
from pathlib import Path

import numpy as np
import pytest
from asymcir_export import ParityError, check_parity
from asymcir_export.checks.parity import load_pictures, worst_storage


def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 6, 32)).astype(np.float32)


def test_equal_outputs_pass() -> None:
    record = check_parity("y", vectors(), vectors() + 1e-6, storage="fp32")
    assert record["vectors"] == 120
    assert record["cosine_min"] > 0.999999
    assert record["max_abs_difference"] < 1e-5


def test_thresholds_loosen_with_the_storage() -> None:
    noisy = vectors() + np.random.default_rng(1).normal(size=(20, 6, 32)).astype(np.float32) * 0.05
    check_parity("y", vectors(), noisy, storage="int8")
    with pytest.raises(
        ParityError,
        match=r"y: the exported model differs from its original by more than fp32 weights may: cosine min 0\.99",
    ):
        check_parity("y", vectors(), noisy, storage="fp32")


def test_a_common_part_does_not_hide_a_fault() -> None:
    # Every vector lies near one mean; an encoder that always answers with it has a cosine of 0.99995.
    mean = np.full((1, 1, 32), 10.0, dtype=np.float32)
    expected = mean + 0.1 * vectors()
    with pytest.raises(ParityError, match=r"error to spread 1\.0"):
        check_parity("y", expected, np.broadcast_to(expected.mean(axis=0), expected.shape), storage="int8")


@pytest.mark.parametrize(
    ("found", "message"),
    [(vectors()[:, :, :16], r"gives \[20, 6, 16\]"), (np.full_like(vectors(), np.nan), "NaN or infinity")],
)
def test_other_shapes_and_nan_are_refused(found: np.ndarray, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        check_parity("y", vectors(), found, storage="fp32")


def test_the_leanest_storage_sets_the_threshold() -> None:
    assert worst_storage("fp32", "int8", "fp16") == "int8"
    assert worst_storage("fp16", "fp16") == "fp16"


def test_pictures_are_spread_over_the_folder_and_not_all_square(pictures: Path) -> None:
    assert len(load_pictures(pictures)) == 6  # the broken one is passed over
    assert len(load_pictures(pictures, limit=3)) == 3
    shapes = {picture.shape[0] / picture.shape[1] for picture in load_pictures(pictures)}
    assert len(shapes) > 3


def test_pictures_of_an_archive_are_those_of_the_folder(pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in pictures.iterdir():
            archive.write(path, path.name)
    for expected, found in zip(load_pictures(pictures), load_pictures(tmp_path / "pictures.zip"), strict=True):
        np.testing.assert_array_equal(found, expected)
