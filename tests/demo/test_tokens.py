"""The committed device bundle: six tokens that differ, on pictures of the demo's gallery."""

from pathlib import Path

import pytest
from asymcir_benchmarks.retrieval.token_diversity import measure_pictures
from asymcir_edge import DeviceBundle, QueryEncoder

PICTURES = 100
MAX_COSINE = 0.6
MIN_EFFECTIVE_RANK = 3.0


@pytest.fixture(scope="module")
def assets() -> Path:
    return Path(__file__).parents[2] / "demo" / "assets"


def test_the_tokens_of_a_picture_differ(assets: Path) -> None:
    encoder = QueryEncoder(DeviceBundle.load(assets / "device"))
    found, pictures = measure_pictures(encoder, assets / "gallery" / "gallery.zip", limit=PICTURES)
    assert (pictures, found.sentence_length) == (PICTURES, 6)
    assert found.cosine < MAX_COSINE
    assert found.effective_rank > MIN_EFFECTIVE_RANK
    assert found.centred_rank > MIN_EFFECTIVE_RANK  # they differ in what they say, not by a constant alone
    assert not found.collapsed, found.warning
