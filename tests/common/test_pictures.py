import io
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import heic_files
import numpy as np
import pytest
from asymcir_common import ImageError, decode_image, read_image
from asymcir_common.pictures import MAX_PIXELS
from asymcir_common.places import PathReader
from numpy.typing import NDArray
from PIL import Image

RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)


def _encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _noise(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """An RGB PNG by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _assert_uniform(pixels: NDArray[np.uint8], colour: tuple[int, int, int], tolerance: int = 0) -> None:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert np.abs(pixels.astype(int) - np.array(colour)).max() <= tolerance


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_lossless_formats_give_their_pixels(form: str) -> None:
    pixels = np.repeat(np.repeat(_noise(4, 6), 5, axis=0), 5, axis=1)
    decoded = decode_image(_encode(Image.fromarray(pixels), form, **({"lossless": True} if form == "WEBP" else {})))
    np.testing.assert_array_equal(decoded, pixels)


def test_a_path_may_lead_into_an_archive(tmp_path: Path) -> None:
    data = _encode(Image.fromarray(_noise()))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("a/noise.png", data)
    (tmp_path / "plain.png").write_bytes(data)
    for reader in (None, PathReader()):
        for name in ("pictures.zip/a/noise.png", "plain.png"):
            np.testing.assert_array_equal(read_image(tmp_path / name, reader), _noise())
        for name in ("pictures.zip/b.png", "plain.png/b.png", "nowhere.zip/b.png"):
            with pytest.raises(ImageError, match=f"cannot read .*{name}"):
                read_image(tmp_path / name, reader)


def test_one_pixel() -> None:
    _assert_uniform(decode_image(_encode(Image.new("RGB", (1, 1), RED))), RED)


def test_fifty_megapixels() -> None:
    pixels = decode_image(_encode(Image.new("RGB", (8000, 6250), GREEN), compress_level=1))
    assert pixels.shape == (6250, 8000, 3)
    _assert_uniform(pixels[::997, ::997], GREEN)


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    _assert_uniform(decode_image(_encode(image, "JPEG")), RED, tolerance=3)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (32896, 128), (65535, 255)])
def test_16bit_grey_png(value: int, grey: int) -> None:
    image = Image.fromarray(np.full((5, 7), value, np.uint16))
    _assert_uniform(decode_image(_encode(image)), (grey, grey, grey))


def test_16bit_rgb_png() -> None:
    values = np.broadcast_to(np.array([65535, 32896, 0], np.uint16), (5, 7, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    _assert_uniform(decode_image(_png(7, 5, 16, rows)), (255, 128, 0), tolerance=1)


@pytest.mark.parametrize("value", [1.0, 255.0])
def test_float_tiff_with_white(value: float) -> None:
    _assert_uniform(decode_image(_encode(Image.fromarray(np.full((5, 7), value, np.float32)), "TIFF")), WHITE)


def test_float_tiff_with_nan() -> None:
    values = np.full((5, 7), np.nan, np.float32)
    values[0, 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(_encode(Image.fromarray(values), "TIFF"))[0, 1].tolist() == [0, 0, 0]


def test_palette_with_transparency() -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((3, 0), 1)
    pixels = decode_image(_encode(image, transparency=0))
    assert pixels[0, 0].tolist() == list(WHITE)
    assert pixels[0, 3].tolist() == list(GREEN)


def test_palette_without_transparency() -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([*RED, *GREEN])
    _assert_uniform(decode_image(_encode(image)), GREEN)


@pytest.mark.parametrize(("alpha", "grey"), [(0, 255), (255, 0), (128, 127)])
def test_grey_with_alpha_is_laid_on_white(alpha: int, grey: int) -> None:
    _assert_uniform(decode_image(_encode(Image.new("LA", (3, 3), (0, alpha)))), (grey, grey, grey))


@pytest.mark.parametrize(("alpha", "colour"), [(0, WHITE), (255, RED), (128, (255, 127, 127))])
def test_alpha_is_laid_on_white(alpha: int, colour: tuple[int, int, int]) -> None:
    _assert_uniform(decode_image(_encode(Image.new("RGBA", (3, 3), (*RED, alpha)))), colour)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey(mode: str) -> None:
    _assert_uniform(decode_image(_encode(Image.new(mode, (3, 3), 255))), WHITE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0], upright[3, 5], upright[0, 5] = RED, GREEN, WHITE
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode_image(data), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_beside_good_pixels() -> None:
    pixels = _noise(8, 8)
    data = _encode(Image.fromarray(pixels), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03")
    np.testing.assert_array_equal(decode_image(data), pixels)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in (RED, GREEN)]
    _assert_uniform(decode_image(_encode(frames[0], "GIF", save_all=True, append_images=frames[1:])), RED)


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"", "empty"),
        (b"\0", "not a picture format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not a picture format"),
        (b"\x89PNG\r\n\x1a\n", "cannot decode"),
        (b"GIF89a", "cannot decode"),
    ],
)
def test_not_a_picture(data: bytes, pattern: str) -> None:
    with pytest.raises(ImageError, match=pattern) as caught:
        decode_image(data, name="x.png")
    assert "x.png" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated(form: str, part: float) -> None:
    data = _encode(Image.fromarray(_noise()), form)
    with pytest.raises(ImageError):
        decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "JPEG2000", "ICO", "TGA", "QOI", "AVIF"])
def test_damaged_bytes_give_a_picture_or_an_image_error(form: str) -> None:
    data = _encode(Image.fromarray(_noise(16, 16)), form)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what it reads
        for _ in range(40):
            damaged = bytearray(data)
            for position in rng.integers(0, min(len(data), 200), 3):
                damaged[position] = rng.integers(256)
            try:
                pixels = decode_image(bytes(damaged))
            except ImageError as exc:
                assert "\n" not in str(exc)
            else:
                assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)


@pytest.mark.parametrize("side", [13_400, 30_000, 2**31 - 1])
def test_too_many_pixels_are_refused_before_decoding(side: int) -> None:
    assert side * side > MAX_PIXELS
    with pytest.raises(ImageError, match="178 megapixels"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        decode_image(_png(side, side, 8, b""))


def test_read_image(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(_encode(Image.new("RGB", (2, 3), RED)))
    assert read_image(path).shape == (3, 2, 3)
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(tmp_path)


def test_heic_pictures_are_upright_and_on_white() -> None:
    plain, rotated, alpha = (decode_image(data) for data in (heic_files.PLAIN, heic_files.ROTATED, heic_files.ALPHA))
    assert (plain.shape, rotated.shape, alpha.shape) == ((48, 80, 3), (80, 48, 3), (48, 80, 3))
    for pixels, red, green in ((plain, (24, 8), (8, 70)), (rotated, (8, 24), (70, 40))):
        assert pixels[red][0] > 180 and pixels[red][1] < 60
        assert pixels[green][1] > 160 and pixels[green][0] < 60
    assert alpha[24, 8].min() > 250 and alpha[8, 70, 1] > 160


@pytest.mark.parametrize("form", ["HEIC", "AVIF"])
@pytest.mark.parametrize("side", [14_000, 100_000, 2**31 - 1])
def test_heic_and_avif_that_claim_to_be_giant(form: str, side: int) -> None:
    data = heic_files.PLAIN if form == "HEIC" else _encode(Image.fromarray(_noise()), "AVIF")
    with pytest.raises(ImageError, match=r"megapixels|not a picture format"):
        decode_image(heic_files.claim_size(data, side, side))


def test_damaged_heic_and_avif() -> None:
    for data in (heic_files.PLAIN, _encode(Image.fromarray(_noise()), "AVIF")):
        for size in range(13, len(data) - 20, 37):
            with pytest.raises(ImageError):
                decode_image(data[:size])


def test_heic_without_its_decoder_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pi_heif'] = None; from asymcir_common import decode_image\n"
        f"try: decode_image({heic_files.PLAIN!r})\n"
        "except Exception as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install" in done.stdout and "[heif]'" in done.stdout
