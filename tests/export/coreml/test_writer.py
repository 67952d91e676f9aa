from dataclasses import replace
from pathlib import Path

import pytest
from asymcir_export import ExportError, write_coreml
from asymcir_export.coreml.writer import read_coreml
from asymcir_training import LightEncoder


def test_the_package_is_written_and_read_back(light_encoder: LightEncoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder.mlpackage"
    found = write_coreml(light_encoder, light_encoder.preprocessing, path)
    assert sorted(item.name for item in path.iterdir()) == ["Data", "Manifest.json"]
    assert found["input"] == "pixels: RGB image 64x64"
    assert found["output"] == "sentence_tokens: float16 [6, 48]"
    assert found["operators"]["conv"] > 10
    assert {"softmax", "layer_norm", "sub", "mul"} <= set(found["operators"])
    size_bytes = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    weights = sum(value.numel() for value in light_encoder.parameters())
    assert size_bytes < 2.5 * weights  # fp16
    with pytest.raises(ExportError, match="declares"):
        read_coreml(path, size=64, shape=[6, 49])


def test_bicubic_pictures_are_refused(light_encoder: LightEncoder, tmp_path: Path) -> None:
    spec = replace(light_encoder.preprocessing, interpolation="bicubic")
    with pytest.raises(ExportError, match=r"no bicubic resize.*--no-coreml"):
        write_coreml(light_encoder, spec, tmp_path / "encoder.mlpackage")
    assert list(tmp_path.iterdir()) == []
