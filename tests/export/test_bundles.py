from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_export import ExportError, export_device_bundle, export_server_bundle
from asymcir_protos import preprocess, read_manifest
from asymcir_protos.manifest import DEVICE_BUNDLE, SERVER_BUNDLE
from asymcir_server.bundle import ServerBundle
from asymcir_server.text_encoder import TextEncoder
from asymcir_training import Foundation, LightEncoder, UnionHead
from PIL import Image

SOURCES = [{"name": "tests", "licence": "Apache-2.0", "url": "https://example.org"}]


@pytest.fixture(scope="module")
def device_bundle(tmp_path_factory: pytest.TempPathFactory, light_encoder: LightEncoder, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("device") / "bundle"
    export_device_bundle(
        light_encoder,
        out,
        word_space="ab" * 32,
        foundation="f",
        pictures=pictures,
        variants=["coreml-fp16", "fp32-ort", "fp16", "int8"],
        sources=SOURCES,
    )
    return out


@pytest.fixture(scope="module")
def causal_bundle(
    tmp_path_factory: pytest.TempPathFactory, causal_foundation: Foundation, union_head: UnionHead, pictures: Path
) -> Path:
    out = tmp_path_factory.mktemp("causal") / "bundle"
    export_server_bundle(causal_foundation, union_head, out, pictures=pictures, sources=SOURCES)
    return out


def test_the_device_bundle_describes_itself(device_bundle: Path) -> None:
    manifest = read_manifest(device_bundle, format=DEVICE_BUNDLE)
    assert manifest.properties["sentence_length"] == 6
    assert manifest.properties["word_width"] == 48
    assert manifest.properties["encoders"] == {
        "fp32": "encoder.onnx",
        "fp16": "encoder.fp16.onnx",
        "fp32-ort": "encoder.ort",
    }
    assert manifest.properties["coreml"] == {"coreml-fp16": "encoder.mlpackage"}
    variants = manifest.properties["variants"]
    assert list(variants) == ["fp32", "fp16", "int8", "fp32-ort", "coreml-fp16"]
    assert variants["int8"]["status"] == "absent" and "16 or more pictures" in variants["int8"]["reason"]
    for name in ("fp32", "fp16", "fp32-ort", "coreml-fp16"):
        assert variants[name]["status"] == "kept" and variants[name]["cosine_min"] > 0.999, name
    assert variants["coreml-fp16"]["package"]["operators"]["conv"] > 10
    report = (device_bundle / manifest.properties["report"]).read_text()
    assert "<svg" in report and "16 or more pictures" in report and "http" not in report.replace("http-equiv", "")
    assert manifest.properties["weight_storage"] == "fp32"
    assert manifest.sources == SOURCES
    assert manifest.parity["sentence_tokens"]["cosine_min"] > 0.99999
    assert manifest.parity["sentence_tokens_resized"]["cosine_min"] > 0.999
    assert [path.name for path in device_bundle.parent.iterdir()] == ["bundle"]


def test_the_device_encoder_reads_pictures_of_any_size(device_bundle: Path, light_encoder: LightEncoder) -> None:
    encoder = QueryEncoder(DeviceBundle.load(device_bundle))
    spec = light_encoder.preprocessing
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8))
    for height, width in [(1, 1), (64, 64), (31, 97), (640, 401)]:
        picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        square = (preprocess(picture, spec) / 255 - np.array(spec.mean)) / np.array(spec.std)
        with torch.inference_mode():
            expected = light_encoder(torch.tensor(square, dtype=torch.float32).permute(2, 0, 1)[None])[0].numpy()
        found = encoder.encode_image(picture)
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > 0.995, (height, width)


def test_every_encoder_of_the_bundle_opens_on_the_device(device_bundle: Path) -> None:
    bundle = DeviceBundle.load(device_bundle)
    picture = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    expected = QueryEncoder(bundle).encode_image(picture)
    for precision in bundle.encoders:
        found = QueryEncoder(bundle, precision=precision).encode_image(picture)
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_the_causal_server_bundle_describes_itself(causal_bundle: Path, causal_foundation: Foundation) -> None:
    manifest = read_manifest(causal_bundle, format=SERVER_BUNDLE)
    assert manifest.properties["word_space"] == causal_foundation.word_space()
    assert set(manifest.properties["target_spaces"]) == {"union", "original", "sum"}
    assert manifest.properties["text"]["causal"] is True
    assert manifest.properties["text"]["word_embedding_scales"] is None
    for name in ("text_features", "image_features", "target", "target_end_to_end"):
        assert manifest.parity[name]["cosine_min"] > 0.9999, name
    assert manifest.parity["gate"]["max_abs_difference"] < 1e-3
    assert manifest.parity["tokenizer"] == {**manifest.parity["tokenizer"], "strings": 10_000, "differences": 0}
    bundle = ServerBundle.load(causal_bundle)
    assert bundle.text_session()[1] == {"word_embeddings", "pool_index"}  # a causal tower needs no mask


def test_batches_of_any_size_and_length_agree_with_the_foundation(
    causal_bundle: Path, causal_foundation: Foundation
) -> None:
    encoder = TextEncoder(ServerBundle.load(causal_bundle))
    texts = ["", "a", "a photo of a red hat", "!? " * 20, "the same but in blue " * 3]
    expected = causal_foundation.encode_text(texts).numpy()
    assert np.abs(encoder.encode_text(texts) - expected).max() < 1e-4
    for text, row in zip(texts, expected, strict=True):
        assert np.abs(encoder.encode_text([text])[0] - row).max() < 1e-4


def test_a_tower_that_reads_its_padding_is_padded_as_in_training(
    padded_foundation: Foundation, union_head: UnionHead, pictures: Path, tmp_path: Path
) -> None:
    export_server_bundle(padded_foundation, union_head, tmp_path / "bundle", pictures=pictures)
    bundle = ServerBundle.load(tmp_path / "bundle")
    assert bundle.text_session()[1] == {"word_embeddings"} and not bundle.text.causal
    texts = ["", "a red cat", "the same but in blue"]
    expected = padded_foundation.encode_text(texts).numpy()
    assert np.abs(TextEncoder(bundle).encode_text(texts) - expected).max() < 1e-4


def test_an_existing_output_is_refused_without_force(
    device_bundle: Path, light_encoder: LightEncoder, pictures: Path, tmp_path: Path
) -> None:
    def export(out: Path, *, force: bool) -> None:
        export_device_bundle(
            light_encoder, out, word_space="cd" * 32, foundation="f", pictures=pictures, variants=(), force=force
        )

    before = (device_bundle / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match="exists: choose another"):
        export(device_bundle, force=False)
    assert (device_bundle / "manifest.json").read_bytes() == before
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").write_text("old")
    export(out, force=True)
    assert read_manifest(out, format=DEVICE_BUNDLE).properties["word_space"] == "cd" * 32
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_union_head_of_another_width_is_refused(
    tmp_path: Path, causal_foundation: Foundation, pictures: Path
) -> None:
    with pytest.raises(ExportError, match="16 wide"):
        export_server_bundle(causal_foundation, UnionHead(16), tmp_path / "b", pictures=pictures)
    assert list(tmp_path.iterdir()) == []


def test_too_few_pictures_are_refused(tmp_path: Path, light_encoder: LightEncoder) -> None:
    with pytest.raises(ExportError, match="2 or more pictures"):
        export_device_bundle(light_encoder, tmp_path / "b", word_space="a", foundation="f", pictures=tmp_path)


@pytest.mark.parametrize("compute", ["fp16", "int8"])
def test_the_text_tower_computes_in_less(
    compute: str, tmp_path: Path, causal_foundation: Foundation, union_head: UnionHead, pictures: Path
) -> None:
    out = tmp_path / "bundle"
    export_server_bundle(causal_foundation, union_head, out, pictures=pictures, text_compute=compute)  # type: ignore[arg-type]
    manifest = read_manifest(out, format=SERVER_BUNDLE)
    assert manifest.properties["compute"] == {"text_encoder.onnx": compute, "visual_encoder.onnx": "fp32"}
    texts = ["a", "the same but in blue", "!? " * 9]
    found = TextEncoder(ServerBundle.load(out)).encode_text(texts)
    expected = causal_foundation.encode_text(texts).detach().numpy()
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0.99 < cosines.min() < 1.0 - 1e-8
    assert manifest.parity["text_features"]["cosine_min"] < 1.0 - 1e-8
