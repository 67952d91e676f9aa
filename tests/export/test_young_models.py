"""Models that were trained for a few steps, whose outputs barely spread, come through the export."""

import logging
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import read_manifest
from asymcir_common.manifest import DEVICE_BUNDLE, SERVER_BUNDLE
from asymcir_edge import DeviceBundle, run_selftest
from asymcir_edge.cli import main
from asymcir_export import ParityError, export_server_bundle
from asymcir_export.bundles import server
from asymcir_export.checks import parity
from asymcir_export.int8 import sensitivity
from asymcir_training import Foundation, UnionHead
from onnx import ModelProto, numpy_helper
from PIL import Image

SIZES = ((64, 64), (48, 48), (90, 60), (150, 200), (240, 135), (64, 100))


@pytest.fixture(autouse=True)
def _few_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymcir_export.bundles.tokenizer_json.STRESS_COUNT", 200)


@pytest.fixture
def many_pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(24):
        height, width = SIZES[number % len(SIZES)]
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.slow
def test_a_light_encoder_after_a_few_steps(
    many_pictures: Path,
    bert_name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensitivity, "MAX_FLOAT_MACS", 0.0)  # no second try of int8: it takes minutes
    light, out = tmp_path / "light", tmp_path / "bundle"
    (tmp_path / "phrases.txt").write_text("red cat\nblue dog\na photo\n")
    words = ["train", "distil", str(many_pictures), "--foundation", bert_name, "--backbone", "mobilenetv3_small_050"]
    words += ["--size", "32", "--width", "32", "--batch", "8", "--epochs", "1", "--out", str(light)]
    assert main([*words, "--phrases", str(tmp_path / "phrases.txt")]) == 0
    words = ["export", "device", str(light), "--out", str(out), "--pictures", str(many_pictures), "--no-coreml"]
    assert main(words) == 0
    capsys.readouterr()
    properties = read_manifest(out, format=DEVICE_BUNDLE).properties
    tried = properties["variants"]
    assert list(tried) == ["fp32", "fp16", "int8", "fp32-ort", "int8-ort"]
    assert tried["fp16"]["status"] == tried["fp32-ort"]["status"] == "kept"
    assert not any("nothing was written" in record["reason"] for record in tried.values())
    report = (out / "report.html").read_text()
    assert f"Worst picture: {tried['fp32']['worst']['picture']}, prepared: cosine" in report
    assert f"{tried['fp32']['resized']['worst']['picture']}, resized in the graph" in report
    record = read_manifest(out, format=DEVICE_BUNDLE).parity
    assert record["sentence_tokens"]["quantile"] == 0.0 and record["sentence_tokens"]["thresholds"][0] == 0.999
    assert record["sentence_tokens_resized"]["grey_difference_worst"] < 0.5
    assert record["sentence_tokens_resized"]["worst"]["picture"].endswith(".png")
    assert run_selftest(DeviceBundle.load(out), repeats=1).passed


def test_a_union_head_that_misses_int4_is_stored_more_exactly(
    causal_foundation: Foundation,
    union_head: UnionHead,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(parity.MAX_ERROR_TO_SPREAD, "int4", 0.0)  # type: ignore[arg-type]
    out = tmp_path / "bundle"
    with caplog.at_level(logging.WARNING):
        export_server_bundle(causal_foundation, union_head, out, pictures=pictures, union_storage="int4")
    properties = read_manifest(out, format=SERVER_BUNDLE).properties
    assert properties["union"] == {"file": "union_head.onnx", "asked": "int4"}
    assert properties["weight_storage"]["union_head.onnx"] == "int8"
    assert "the UNION head is stored more exactly than as int4: target: the exported model differs" in caplog.text
    assert "nothing was written" not in caplog.text


def test_a_wrong_union_head_is_refused_in_every_storage(
    causal_foundation: Foundation,
    union_head: UnionHead,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = server._export_union

    def damage(head: UnionHead) -> ModelProto:
        model = original(head)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("gate.") and tensor.name.endswith("bias"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 3.0, tensor.name))
        return model

    monkeypatch.setattr(server, "_export_union", damage)
    for storage in ("int4", "fp32"):
        with pytest.raises(ParityError, match="target: the exported model differs from its original by more than fp32"):
            export_server_bundle(
                causal_foundation,
                union_head,
                tmp_path / "bundle",
                pictures=pictures,
                union_storage=storage,  # type: ignore[arg-type]
            )
    assert not list(tmp_path.iterdir())
