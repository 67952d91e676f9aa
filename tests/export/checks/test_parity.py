import zipfile
from pathlib import Path

import numpy as np
import pytest
from asymcir_export import ParityError, check_parity
from asymcir_export.checks.agreement import Thresholds, check_agreement
from asymcir_export.checks.parity import load_named_pictures, load_pictures, worst_storage


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


def test_one_bad_token_is_named_and_judged_by_what_is_asked() -> None:
    names = [f"folder/{number}.png" for number in range(20)]
    found = vectors()
    found[13, 4] = -found[13, 4]
    strict = Thresholds(cosine_min=0.95, cosine_mean=0.97, error_to_spread=0.75)
    by_percentile = Thresholds(cosine_min=0.95, cosine_mean=0.97, error_to_spread=0.75, quantile=0.05)
    with pytest.raises(
        ParityError, match=r"cosine min -1\.0.*worst picture folder/13\.png \(cosine -1\.0.*pass x; noth"
    ):
        check_agreement("y", vectors(), found, thresholds=strict, allowance="z", pictures=names, advice="pass x")
    record = check_agreement("y", vectors(), found, thresholds=by_percentile, allowance="z", pictures=names)
    assert record["worst"] == {"picture": "folder/13.png", "cosine": pytest.approx(-1.0)}
    assert record["cosine_p05"] == pytest.approx(1.0) and record["quantile"] == 0.05
    found[:3] = -found[:3]
    with pytest.raises(ParityError, match=r"cosine 5th percentile -1\.0"):
        check_agreement("y", vectors(), found, thresholds=by_percentile, allowance="z")


def test_what_to_do_is_said_of_lean_storage_alone() -> None:
    for storage, said in (("int8", True), ("fp32", False)):
        with pytest.raises(ParityError) as caught:
            check_parity("y", vectors(), -vectors(), storage=storage, advice="pass --storage fp16")  # type: ignore[arg-type]
        assert ("pass --storage fp16" in str(caught.value)) == said
        assert str(caught.value) == f"{caught.value.difference}; nothing was written"


def test_an_error_that_all_share_can_be_left_out() -> None:
    moved = vectors() + 0.2
    limits = Thresholds(cosine_min=0.9, cosine_mean=0.9, error_to_spread=0.1)
    with pytest.raises(ParityError, match=r"error to spread 0\.2"):
        check_agreement("y", vectors(), moved, thresholds=limits, allowance="z")
    record = check_agreement("y", vectors(), moved, thresholds=limits, allowance="z", centred=True)
    assert record["error_to_spread"] < 1e-6 and record["offset_to_spread"] == pytest.approx(0.2, rel=0.1)


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
    assert list(load_named_pictures(pictures)) == [f"{number}.png" for number in range(6)]


def test_pictures_of_an_archive_are_those_of_the_folder(pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in pictures.iterdir():
            archive.write(path, path.name)
    for expected, found in zip(load_pictures(pictures), load_pictures(tmp_path / "pictures.zip"), strict=True):
        np.testing.assert_array_equal(found, expected)
