from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import preprocess
from asymcir_export import ExportError, ParityError, write_coreml_variant
from asymcir_export.checks.parity import load_pictures
from asymcir_export.coreml.check import COREML_THRESHOLDS, check_coreml, measure_ranges
from asymcir_export.coreml.compression import VARIANT_FILES, package_size_bytes
from asymcir_export.coreml.writer import read_coreml
from asymcir_training import LightEncoder
from numpy.typing import NDArray


@pytest.fixture(scope="module")
def squares(pictures: Path, light_encoder: LightEncoder) -> list[NDArray[np.uint8]]:
    return [preprocess(picture, light_encoder.preprocessing) for picture in load_pictures(pictures)]


@pytest.mark.parametrize(
    ("variant", "operator", "most_of_fp16"),
    [
        ("linear8", "constexpr_affine_dequantize", 0.75),
        ("palettized6", "constexpr_lut_to_dense", 0.65),
        ("w8a8", "quantize", 0.8),
    ],
)
def test_a_variant_is_smaller_and_near(
    variant: str,
    operator: str,
    most_of_fp16: float,
    coreml_package: Path,
    light_encoder: LightEncoder,
    squares: Sequence[NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    out = tmp_path / VARIANT_FILES[variant]
    record = write_coreml_variant(coreml_package, variant, out, pictures=squares[::2])
    parity = check_coreml(out, light_encoder, light_encoder.preprocessing, squares, precision=variant)
    assert parity["precision"] == variant
    assert record["size_bytes"] == package_size_bytes(out) < most_of_fp16 * package_size_bytes(coreml_package)
    assert sorted(item.name for item in out.iterdir()) == ["Data", "Manifest.json"]
    assert read_coreml(out, size=64, shape=[6, 48])["operators"][operator] > 5


def test_a_variant_that_is_too_far_is_refused(
    coreml_package: Path,
    light_encoder: LightEncoder,
    squares: Sequence[NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strict = {"linear8": replace(COREML_THRESHOLDS["linear8"], cosine_min=0.9999999)}
    monkeypatch.setattr("asymcir_export.coreml.check.COREML_THRESHOLDS", strict)
    out = tmp_path / "encoder.w8.mlpackage"
    write_coreml_variant(coreml_package, "linear8", out)
    with pytest.raises(ParityError, match="by more than Core ML's linear8 may"):
        check_coreml(out, light_encoder, light_encoder.preprocessing, squares, precision="linear8")


def test_what_cannot_be_written_is_said(coreml_package: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"expected a Core ML variant of \['linear8'.*got 'w4'"):
        write_coreml_variant(coreml_package, "w4", tmp_path / "out.mlpackage")
    with pytest.raises(ExportError, match="needs pictures to measure activations on"):
        write_coreml_variant(coreml_package, "w8a8", tmp_path / "out.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_ranges_cover_all_pictures(coreml_package: Path, squares: Sequence[NDArray[np.uint8]]) -> None:
    together = measure_ranges(coreml_package, squares)
    single = [measure_ranges(coreml_package, [square]) for square in squares[:2]]
    for name, (low, high) in together.items():
        assert low <= min(part[name][0] for part in single)
        assert high >= max(part[name][1] for part in single)
    assert single[0]["sentence_tokens"] != single[1]["sentence_tokens"]
