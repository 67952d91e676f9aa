from pathlib import Path
from typing import Any

import pytest
import tiny_device_bundle as tiny
from asymcir_common import BundleError, write_manifest
from asymcir_common.manifest import SERVER_BUNDLE
from asymcir_edge import DeviceBundle


def test_load(tmp_path: Path) -> None:
    encoders = {"fp32": tiny.make_encoder(), "int8": tiny.make_encoder(weights_as_int8=True)}
    bundle = DeviceBundle.load(tiny.write_device_bundle(tmp_path / "b", encoders, default_encoder="int8"))
    assert (bundle.sentence_length, bundle.word_width) == (tiny.SENTENCE_LENGTH, tiny.WORD_WIDTH)
    assert bundle.word_space == tiny.WORD_SPACE
    assert bundle.preprocessing.size == 4
    assert bundle.weight_storage == "fp32"
    assert bundle.encoder_path() == tmp_path / "b" / "encoder.int8.onnx"
    assert bundle.encoder_path("fp32") == tmp_path / "b" / "encoder.onnx"
    with pytest.raises(BundleError, match=r"no encoder of precision 'fp16'.*\['fp32', 'int8'\]"):
        bundle.encoder_path("fp16")


def test_changed_encoder(tmp_path: Path) -> None:
    folder = tiny.write_device_bundle(tmp_path / "b")
    data = bytearray((folder / "encoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "encoder.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="not the file its manifest describes"):
        DeviceBundle.load(folder)


def test_server_bundle_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, format=SERVER_BUNDLE, properties={})
    with pytest.raises(BundleError, match=r"got an asymcir\.server-bundle"):
        DeviceBundle.load(tmp_path)


@pytest.mark.parametrize(
    "key", ["word_space", "sentence_length", "word_width", "preprocessing", "encoders", "default_encoder"]
)
def test_missing_property(tmp_path: Path, key: str) -> None:
    with pytest.raises(BundleError, match=f"'{key}'"):
        DeviceBundle.load(tiny.write_device_bundle(tmp_path / "b", drop=key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("word_space", ""),
        ("word_space", 5),
        ("sentence_length", 0),
        ("sentence_length", -1),
        ("sentence_length", "4"),
        ("sentence_length", True),
        ("word_width", 8.5),
        ("preprocessing", []),
        ("encoders", {}),
        ("encoders", ["encoder.onnx"]),
        ("encoders", {"fp32": "other.onnx"}),
        ("encoders", {"fp32": "../encoder.onnx"}),
        ("encoders", {"fp32": ["encoder.onnx"]}),
        ("default_encoder", "int4"),
        ("weight_storage", "int3"),
        ("weight_storage", ["int8"]),
    ],
)
def test_wrong_property(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(BundleError, match=f"expected {key} to be") as caught:
        DeviceBundle.load(tiny.write_device_bundle(tmp_path / "b", **{key: value}))
    assert "\n" not in str(caught.value)


def test_wrong_preprocessing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="preprocessing is not readable"):
        DeviceBundle.load(tiny.write_device_bundle(tmp_path / "b", preprocessing={"size": 4}))
