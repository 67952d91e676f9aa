"""Thumbnails: what they show, and that they come back."""

import io
from pathlib import Path

import numpy as np
from asymcir_common import read_manifest
from asymcir_common.manifest import GALLERY
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from asymcir_server.gallery.sources.thumbnails import make_thumbnail
from PIL import Image


def read(data: bytes | None) -> Image.Image:
    assert data is not None
    image = Image.open(io.BytesIO(data))
    assert image.format == "WEBP"
    return image


def test_sides_are_scaled_down_and_never_up() -> None:
    for height, width, expected in ((400, 100, (16, 64)), (64, 128, (64, 32)), (10, 20, (20, 10)), (1, 3000, (64, 1))):
        pixels = np.zeros((height, width, 3), np.uint8)
        assert read(make_thumbnail(pixels, 64)).size == expected


def test_thumbnails_are_upright_and_on_white(tmp_path: Path, bundle: ServerBundle) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    left_red = np.zeros((60, 120, 3), np.uint8)
    left_red[:, :60, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(left_red).save(folder / "rotated.jpg", exif=exif, quality=95)
    Image.new("RGBA", (60, 60), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.new("RGB", (2, 2), (0, 0, 255)).save(folder / "small.png")
    (folder / "again.png").write_bytes((folder / "clear.png").read_bytes())
    report = build_gallery(folder, bundle, tmp_path / "g", config=BuildConfig(thumbnail_side=32))
    assert "thumbnails.sqlite" in read_manifest(report.snapshot, format=GALLERY).files
    for _ in range(2):
        gallery = Gallery.open(tmp_path / "g")
        assert gallery.thumbnail_side == 32
        rotated = np.asarray(read(gallery.thumbnail("rotated.jpg")).convert("RGB")).astype(int)
        assert rotated.shape == (32, 16, 3) and rotated[2, 8, 0] > 200 and rotated[-2, 8, 0] < 60
        clear = np.asarray(read(gallery.thumbnail("clear.png")).convert("RGB"))
        assert clear.min() > 250 and gallery.thumbnail("again.png") == gallery.thumbnail("clear.png")
        assert read(gallery.thumbnail("small.png")).size == (2, 2)
        assert gallery.thumbnail("unknown") is None
        gallery.close()
        # The next snapshot takes them from this one; nothing is encoded or decoded again.
        assert build_gallery(folder, bundle, tmp_path / "g", config=BuildConfig(thumbnail_side=32)).encoded == 0
    report = build_gallery(folder, bundle, tmp_path / "g", config=BuildConfig(thumbnail_side=16))
    gallery = Gallery.open(tmp_path / "g")
    assert report.encoded == 0 and read(gallery.thumbnail("clear.png")).size == (16, 16)
    gallery.close()


def test_a_gallery_without_thumbnails(gallery: Gallery) -> None:
    assert gallery.thumbnail_side == 0 and gallery.thumbnail("left/01.png") is None
