from pathlib import Path

import numpy as np
import pytest
from asymcir_edge.cli import main
from asymcir_export import ExportError, export_device_bundle, variants
from asymcir_export.report import render_report
from asymcir_export.variants import MAX_RECALL_LOSS, judge, split_pictures
from asymcir_protos import read_manifest
from asymcir_protos.manifest import DEVICE_BUNDLE
from asymcir_training import LightEncoder, save_light_encoder
from onnx import ModelProto, numpy_helper


def test_a_variant_that_fails_its_gate_is_left_out_and_fails_the_command(
    light_encoder: LightEncoder,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = variants.to_fp16

    def damage(model: ModelProto) -> ModelProto:
        half = original(model)
        weight = next(tensor for tensor in half.graph.initializer if len(tensor.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
        return half

    save_light_encoder(tmp_path / "checkpoint", light_encoder, {"word_space": "a" * 64, "foundation": "tiny"})
    out = tmp_path / "bundle"
    words = ["export", "device", str(tmp_path / "checkpoint"), "--out", str(out), "--pictures", str(pictures)]
    monkeypatch.setattr(variants, "to_fp16", damage)
    assert main([*words, "--variants", "fp16", "fp32-ort"]) == 1
    printed = capsys.readouterr()
    assert "fp16: dropped" in printed.out and "left out, their gates failed: fp16" in printed.err
    manifest = read_manifest(out, format=DEVICE_BUNDLE)
    assert manifest.properties["encoders"] == {"fp32": "encoder.onnx", "fp32-ort": "encoder.ort"}
    assert not (out / "encoder.fp16.onnx").exists()
    assert "encoder.fp16.onnx: the exported model differs" in manifest.properties["variants"]["fp16"]["reason"]
    assert "dropped" in (out / "report.html").read_text()
    monkeypatch.undo()
    assert main([*words, "--variants", "fp16", "--force"]) == 0


def test_wrong_requests_say_what_to_do(light_encoder: LightEncoder, pictures: Path, tmp_path: Path) -> None:
    def export(**options: object) -> None:
        export_device_bundle(
            light_encoder, tmp_path / "b", word_space="a", foundation="f", pictures=pictures, **options
        )  # type: ignore[arg-type]

    with pytest.raises(ExportError, match=r"expected variants among fp16, int8, .*, got fp8"):
        export(variants=["fp8"])
    with pytest.raises(ExportError, match="needs a server bundle to search with"):
        export(variants=["fp16"], search_set=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "status"), [(0.0, "kept"), (-MAX_RECALL_LOSS, "kept"), (-0.0051, "dropped")])
def test_recall_decides(change: float, status: str) -> None:
    assert judge({"recall_at_10_change": change})[0] == status
    assert "not measured" in judge({})[1]


def test_few_pictures_do_both_and_many_are_split() -> None:
    pictures = [np.full((1, 1, 3), number, dtype=np.uint8) for number in range(60)]
    compared, calibration = split_pictures(pictures)
    assert len(compared) == 40 and len(calibration) == 20
    assert {int(p[0, 0, 0]) for p in compared} | {int(p[0, 0, 0]) for p in calibration} == set(range(60))
    assert [len(part) for part in split_pictures(pictures[:10])] == [10, 10]


def test_the_report_escapes_and_draws_what_was_measured() -> None:
    records = {
        "fp32": {"status": "kept", "reason": "a <b> & c", "size_mb": 2.0, "cosine_mean": 1.0},
        "int8": {"status": "absent", "reason": "no pictures"},
    }
    page = render_report(records, title="x <y>", facts=[("pictures", "3")])
    assert "x &lt;y&gt;" in page and "a &lt;b&gt; &amp; c" in page and "<y>" not in page
    assert page.count("<svg") == 2  # size and cosine; nothing else was measured
    assert page.count("<rect") == 2
