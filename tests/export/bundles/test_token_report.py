"""What an export says of its sentence tokens, in the manifest, in the report and in the log."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_device_bundle as tiny
from asymcir_common.sentences import measure_diversity
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_export import export_device_bundle
from asymcir_export.bundles.report import render_report
from asymcir_export.bundles.token_report import describe_tokens, render_tokens
from asymcir_training import LightEncoder
from numpy.typing import NDArray
from PIL import Image


def _images(page: str, form: str) -> list[Image.Image]:
    found = re.findall(rf"data:image/{form};base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture
def noise() -> list[NDArray[np.uint8]]:
    return [*np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)]


def test_maps_lie_over_their_pictures(
    noise: list[NDArray[np.uint8]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny.make_encoder(maps_shape=tiny.MAPS_SHAPE)
    encoder = QueryEncoder(DeviceBundle.load(tiny.write_device_bundle(tmp_path / "b", {"fp32": model})))
    record, section = describe_tokens(encoder, noise, noise[:2])
    expected = measure_diversity(
        np.stack([encoder.encode_image(picture) for picture in noise]),
        np.stack([encoder.encode_with_maps(picture)[1] for picture in noise]),
    )
    assert record["centred_rank"] == expected.centred_rank and record["overlap"] == expected.overlap
    assert record["pictures"] == 5 and record["collapsed"] is False
    assert "attention that two tokens share" in section and "Warning" not in section and not caplog.records
    drawn = _images(section, "png")
    assert len(drawn) == 2 * tiny.SENTENCE_LENGTH and len(_images(section, "webp")) == 2
    for image, weights in zip(drawn[tiny.SENTENCE_LENGTH :], encoder.encode_with_maps(noise[1])[1], strict=True):
        alpha = np.asarray(image)[:, :, 3]
        np.testing.assert_array_equal(alpha, np.rint(200 * weights / weights.max()))
    assert section in render_report({}, title="t", facts=[], sections=[section])


def test_manifest_report_and_log_say_the_same(
    light_encoder: LightEncoder, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = export_device_bundle(
        light_encoder, tmp_path / "b", word_space="ab" * 32, foundation="f", pictures=pictures, variants=["fp32-ort"]
    )
    record = manifest.properties["token_diversity"]
    page = (tmp_path / "b" / manifest.properties["report"]).read_text(encoding="utf-8")
    assert set(record) >= {"cosine", "effective_rank", "centred_rank", "overlap", "cosine_between_pictures"}
    warning = "the 6 tokens of a picture are nearly one"
    assert record["collapsed"] == (warning in page) == (warning in caplog.text)
    assert "Sentence tokens" in page and len(_images(page, "png")) == 6 * len(_images(page, "webp")) > 0
    assert len(page) < 60_000
    bundle = DeviceBundle.load(tmp_path / "b")
    square = np.zeros((64, 64, 3), np.uint8)
    for precision in bundle.encoders:
        assert QueryEncoder(bundle, precision=precision).encode_with_maps(square)[1].shape == (6, 2, 2)


def test_collapsed_tokens_are_warned_of_in_the_report() -> None:
    words = np.random.default_rng(0).normal(size=(4, 1, 8)).astype(np.float32)
    found = measure_diversity(np.repeat(words, 3, axis=1), np.full((4, 3, 2, 2), 0.25, np.float32))
    section = render_tokens(found, [])
    assert "Warning: the 3 tokens of a picture are nearly one" in section
    assert "<td>attention that two tokens share</td><td>1</td>" in section
