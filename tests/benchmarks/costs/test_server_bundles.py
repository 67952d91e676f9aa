import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from asymcir_benchmarks.costs import server_bundles
from asymcir_benchmarks.costs.server_bundles import TOWERS
from asymcir_benchmarks.costs.server_timing import describe, measure, open_tower
from asymcir_benchmarks.pages.fill import fill
from asymcir_common import read_manifest
from asymcir_common.manifest import SERVER_BUNDLE
from asymcir_export.graphs import writer
from asymcir_server.encode.bundle import ServerBundle
from asymcir_training import Foundation, UnionHead
from processors import sums_int8_exactly

_kept: list[Any] = []
"""What PyTorch gave for the model of the fixture, for a second look at the same float32 bundle."""


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, causal_foundation: Foundation, union_head: UnionHead, pictures: Path
) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    write_original = server_bundles._write_original

    def keep(*arguments: Any) -> Any:
        facts, reference = write_original(*arguments)
        _kept[:] = [copy.deepcopy(facts), reference]
        return facts, reference

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_bundles, "_write_original", keep)
        patch.setattr("asymcir_export.bundles.tokenizer_json.STRESS_COUNT", 200)
        patch.setattr(writer, "_EXTERNAL_DATA_ABOVE_BYTES", 400_000)
        facts = server_bundles.write_model(lambda: (causal_foundation, union_head), folder / "tiny", pictures)
    (folder / "tiny" / server_bundles.FACTS_FILE).write_text(json.dumps(facts | {"weights": "random"}))
    return folder


def read_facts(models: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    found: dict[str, dict[str, dict[str, dict[str, float]]]]
    found = json.loads((models / "tiny" / server_bundles.FACTS_FILE).read_text())
    return found


def test_every_precision_is_a_bundle_that_the_server_opens(models: Path) -> None:
    facts = read_facts(models)
    assert facts["causal"] is True and list(facts["computes"]) == ["fp32", "fp16", "int8"]
    for compute, towers in facts["computes"].items():
        bundle = ServerBundle.load(models / "tiny" / compute)
        bundle.text_session(), bundle.visual_session(), bundle.union_session()
        expected = dict.fromkeys(TOWERS.values(), compute)
        assert bundle.manifest.properties["compute"] == expected
        for tower in TOWERS:
            # Processors without VNNI cut int8 sums of two at 16 bits: .983 was seen on one, .99 and more with it.
            least = 0.97 if compute == "int8" and not sums_int8_exactly() else 0.99
            assert towers[tower]["passed"] and towers[tower]["cosine_min"] > least, (compute, tower)
    text = {compute: towers["text"] for compute, towers in facts["computes"].items()}
    assert text["fp16"]["size_mb"] < 0.6 * text["fp32"]["size_mb"]
    assert text["int8"]["size_mb"] < text["fp16"]["size_mb"]
    assert text["fp32"]["cosine_min"] > text["fp16"]["cosine_min"] > text["int8"]["cosine_min"]


def test_weights_beside_a_graph_are_listed_and_counted(models: Path) -> None:
    facts = read_facts(models)
    record = facts["computes"]["fp32"]["visual"]
    manifest = read_manifest(models / "tiny" / "fp32", format=SERVER_BUNDLE)
    size_bytes = manifest.files["visual_encoder.onnx.data"].size_bytes
    assert record["external_mb"] == size_bytes / 1e6 > 0.3
    assert record["size_mb"] == (size_bytes + manifest.files["visual_encoder.onnx"].size_bytes) / 1e6
    leaner = read_manifest(models / "tiny" / "int8", format=SERVER_BUNDLE)
    assert "visual_encoder.onnx.data" not in leaner.files
    assert facts["computes"]["int8"]["visual"]["external_mb"] == 0.0


def test_a_tower_is_timed_on_a_query_of_its_length(models: Path) -> None:
    figures = measure(models, rounds={"text": 2, "visual": 1})
    for compute in ("fp32", "fp16", "int8"):
        for tower in TOWERS:
            assert figures[f"tiny, {tower}, {compute}, ms"] > 0.0
            assert figures[f"tiny, {tower}, {compute}, peak memory of its process, MB"] > 20.0
        assert figures[f"tiny, text, {compute}, passed"] == 1.0
    assert figures["tiny, visual, fp32, external data, MB"] > 0.3
    (features,) = open_tower(models / "tiny" / "fp32", "text")()  # type: ignore[misc]
    assert np.isfinite(features).all()
    page = "<!-- figures server-sizes -->\n<!-- end -->"
    results = models / "server-sizes.json"
    record = {"command": "c", "date": "d", "machine": "m", "figures": figures}
    results.write_text(json.dumps(record))
    table = fill(page, models)
    assert "| tiny, random | text | fp32 |" in table and "| tiny, random | visual | int8 |" in table


def test_a_tower_that_misses_its_thresholds_is_recorded_so(
    models: Path,
    causal_foundation: Foundation,
    union_head: UnionHead,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = server_bundles.set_compute

    def spoil(model: onnx.ModelProto, compute: str, **options: object) -> onnx.ModelProto:
        if compute == "int8":
            raise server_bundles.ExportError("cannot be quantised")
        made = original(model, compute, **options)
        half = [tensor for tensor in made.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
        weight = onnx.numpy_helper.to_array(max(half, key=lambda tensor: len(tensor.raw_data))).copy()
        weight[: len(weight) // 2] *= -1
        max(half, key=lambda tensor: len(tensor.raw_data)).raw_data = weight.tobytes()
        return made

    def copy_original(foundation: Foundation, union_head: UnionHead, folder: Path, pictures: Path) -> Any:
        shutil.copytree(models / "tiny" / "fp32", folder)
        return copy.deepcopy(_kept[0]), _kept[1]

    monkeypatch.setattr(server_bundles, "set_compute", spoil)
    monkeypatch.setattr(server_bundles, "_write_original", copy_original)
    facts = server_bundles.write_model(lambda: (causal_foundation, union_head), tmp_path / "tiny", pictures)
    assert facts["computes"]["fp32"]["text"]["passed"]
    assert not facts["computes"]["fp16"]["text"]["passed"]
    assert facts["computes"]["int8"] == {"reason": "cannot be quantised"}
    figures = describe("tiny", {**facts, "weights": "random"})
    assert figures["tiny, text, fp16, passed"] == 0.0 and "tiny, text, int8, passed" not in figures


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(server_bundles.ExportError, match="unknown architecture 'ViT-X'"):
        server_bundles.build_random("ViT-X")
