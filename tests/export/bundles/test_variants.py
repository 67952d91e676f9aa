from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from asymcir_common import Preprocessing, read_manifest
from asymcir_common.manifest import DEVICE_BUNDLE
from asymcir_edge.cli import main
from asymcir_export import ExportError, export_device_bundle
from asymcir_export.bundles import variants
from asymcir_export.bundles.report import render_report
from asymcir_export.bundles.variants import Source, judge, split_pictures, write_variants
from asymcir_export.checks.agreement import Thresholds
from asymcir_export.checks.search_set import MAX_RECALL_LOSS
from asymcir_export.graphs.device_graph import build_network_graph, join_preprocessing
from asymcir_export.graphs.writer import write_onnx
from asymcir_export.int8 import sensitivity
from asymcir_training import LightEncoder, save_light_encoder
from onnx import ModelProto, numpy_helper
from torch import nn


def test_a_variant_that_fails_its_gate_is_left_out_and_the_command_warns(
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
    assert main([*words, "--variants", "fp16", "fp32-ort"]) == 0
    printed = capsys.readouterr()
    assert "fp16: dropped" in printed.out and "warning: left out, their thresholds were not met: fp16;" in printed.err
    manifest = read_manifest(out, format=DEVICE_BUNDLE)
    assert manifest.properties["encoders"] == {"fp32": "encoder.onnx", "fp32-ort": "encoder.ort"}
    assert not (out / "encoder.fp16.onnx").exists()
    assert "encoder.fp16.onnx: the exported model differs" in manifest.properties["variants"]["fp16"]["reason"]
    assert "dropped" in (out / "report.html").read_text()
    assert main([*words, "--variants", "fp16", "--force", "--strict"]) == 1
    assert "warning: left out" in capsys.readouterr().err and out.is_dir()
    monkeypatch.undo()
    assert main([*words, "--variants", "fp16", "--force", "--strict"]) == 0


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


def test_int8_that_fails_is_tried_with_sensitive_layers_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    spec = Preprocessing(size=32, interpolation="bilinear", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU6(), nn.Conv2d(16, 64, 1), nn.ReLU6()]
    layers += [nn.Conv2d(64, 64, 3), nn.ReLU6(), nn.Conv2d(64, 8, 3), nn.Flatten(2)]
    encoder = nn.Sequential(*layers).eval()
    encoder.preprocessing = spec
    generator = np.random.default_rng(5)
    pictures = [np.kron(generator.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(20)]
    network = build_network_graph(encoder, torch.zeros(1, 3, 32, 32))
    write_onnx(join_preprocessing(network, spec), tmp_path / "encoder.onnx")
    session = ort.InferenceSession(str(tmp_path / "encoder.onnx"))
    expected = np.stack([session.run(None, {"pixels": picture})[0] for picture in pictures])
    source = Source(
        encoder=encoder,  # type: ignore[arg-type]
        network=network,
        compared=pictures,
        expected=expected,
        calibration=pictures,
    )
    compare = variants._compare_cost

    def compare_on_a_quiet_machine(*given: Any) -> dict[str, Any]:  # a graph this small may be slower
        return compare(*given) | {"times_faster_than_fp32": 2.0}

    monkeypatch.setattr(variants, "_compare_cost", compare_on_a_quiet_machine)
    monkeypatch.setattr(sensitivity, "MAX_FLOAT_MACS", 0.95)
    monkeypatch.setattr(sensitivity, "TARGET_ERROR", 0.0)

    def write(error_to_spread: float) -> dict[str, Any]:
        limits = Thresholds(cosine_min=0.9, cosine_mean=0.9, error_to_spread=error_to_spread)
        monkeypatch.setitem(variants.THRESHOLDS, "int8", limits)  # type: ignore[arg-type]
        return write_variants(tmp_path, source, ["int8"])["int8"]

    in_full = write(0.25)
    assert in_full["status"] == "kept" and in_full["float_macs_share"] == 0.0 and "full" not in in_full
    size_bytes = (tmp_path / "encoder.int8.onnx").stat().st_size
    mixed = write(0.9 * in_full["error_to_spread"])
    assert mixed["status"] == "kept" and mixed["full"]["status"] == "dropped"
    assert mixed["float_layers"] and 0.0 < mixed["float_macs_share"] <= 0.95
    assert 1.0 < mixed["times_smaller_than_fp32"] < in_full["times_smaller_than_fp32"]
    assert mixed["error_to_spread"] < 0.9 * in_full["error_to_spread"]
    assert "multiply-accumulates float" in mixed["reason"] and "differs from its original" in mixed["reason"]
    assert (tmp_path / "encoder.int8.onnx").stat().st_size > size_bytes
    assert write(0.0)["status"] == "dropped"
    assert not (tmp_path / "encoder.int8.onnx").exists()


def test_int8_that_is_not_faster_or_smaller_is_dropped() -> None:
    assert judge({"times_faster_than_fp32": 1.8, "times_smaller_than_fp32": 3.0})[0] == "kept"
    status, reason = judge({"times_faster_than_fp32": 0.9, "times_smaller_than_fp32": 3.0})
    assert status == "dropped" and "times_faster_than_fp32 is 0.90" in reason
    assert judge({"times_faster_than_fp32": 1.8, "times_smaller_than_fp32": 1.0})[0] == "dropped"
