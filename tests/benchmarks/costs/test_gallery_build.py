"""The benchmark of gallery builds, on a tiny bundle."""

from pathlib import Path

import pytest
from asymcir_benchmarks.costs.gallery_build import SIZES, measure, write_pictures
from asymcir_common.places import find_pictures
from asymcir_server import ServerBundle
from PIL import Image
from tiny_server_bundle import TinyModel, write_tiny_bundle


@pytest.mark.parametrize("separate", [False, True])
def test_figures(tmp_path: Path, separate: bool) -> None:
    bundle = ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel()))
    pictures = write_pictures(tmp_path / "pictures", 6)
    assert write_pictures(pictures, 6) == pictures
    sizes = []
    for path in find_pictures(pictures):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [SIZES[number % len(SIZES)] for number in range(6)]
    figures = measure(bundle, pictures, rounds=2, separate=separate)
    assert figures["pictures"] == 6.0 and figures["rounds"] == 2.0 and min(figures.values()) > 0
    assert figures["decoding and encoding allow, pictures/s"] <= figures["encoding alone, pictures/s"]
