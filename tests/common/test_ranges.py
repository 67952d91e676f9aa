"""Grey values of more than 8 bits: scaled by the declared or the found range, or refused, and the note says which."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asymcir_common import ImageError, decode_image, read_image
from asymcir_common.pictures import MAX_ASPECT_RATIO
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

RAMP = np.linspace(0, 1, 64).reshape(8, 8)  # from black to white


def encode(values: NDArray[Any], form: str = "TIFF", **tags: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, form, **tags)
    return stream.getvalue()


def integer_tiff(values: NDArray[Any]) -> bytes:
    """Pillow writes neither int16 nor uint32, so the directory is written here: TIFF 6.0, one strip, little-endian."""
    height, width = values.shape
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, 8 * values.itemsize), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 3, height), (279, 4, values.nbytes), (339, 3, 1 if values.dtype.kind == "u" else 2),
    ]  # fmt: skip
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little")
    directory = len(entries).to_bytes(2, "little")
    for tag, kind, value in entries:
        directory += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
        directory += value.to_bytes(4, "little")
    return head + data + directory + bytes(4)


def shades(data: bytes) -> tuple[NDArray[np.uint8], list[str]]:
    notes = list[str]()
    pixels = decode_image(data, notes=notes)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0], notes


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_data_of_fewer_bits_in_16(form: str, bits: int) -> None:
    values = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    found, notes = shades(encode(values, form))
    np.testing.assert_allclose(found, RAMP * 255, atol=1)
    assert notes == [f"its values are taken as {bits}-bit data: they go up to {2**bits - 1}"]


@pytest.mark.parametrize("step", [1, 256, 257])
def test_data_of_16_bits(step: int) -> None:
    """A dark picture stays dark where its values show that they use the upper bits."""
    share = 1.0 if step == 1 else 0.1
    values = (np.rint(RAMP * share * 65535 / step) * step).astype(np.uint16)
    found, notes = shades(encode(values, "PNG"))
    np.testing.assert_allclose(found, RAMP * share * 255, atol=1)
    assert notes == []


def test_coarse_data_of_12_bits() -> None:
    """8-bit data that were made 12-bit ones."""
    values = (np.rint(RAMP * 255) * 16).astype(np.uint16)
    found, notes = shades(encode(values, "PNG"))
    np.testing.assert_allclose(found, RAMP * 255, atol=2)
    assert notes == ["its values are taken as 12-bit data: they go up to 4080"]


def test_signed_values() -> None:
    values = np.rint(RAMP * 4095 - 1024).astype(np.int16)  # as a tomograph writes them
    found, notes = shades(integer_tiff(values))
    np.testing.assert_allclose(found, RAMP * 255, atol=1)
    assert notes == ["its values from -1024 to 3071 are taken as black to white"]


@pytest.mark.parametrize("most", [200_000, 2**31 + 5, 2**32 - 1])
def test_unsigned_values_of_32_bits(most: int) -> None:
    values = np.rint(RAMP * most).astype(np.uint32)
    found, notes = shades(integer_tiff(values))
    np.testing.assert_allclose(found, RAMP * 255, atol=1)
    assert len(notes) == 1 and "are taken as black to white" in notes[0]


@pytest.mark.parametrize(
    ("low", "high", "note"),
    [
        (0.0, 1.0, None),
        (0.0, 0.5, None),
        (-1.0, 1.0, "its values from -1 to 1 are taken as black to white"),
        (0.0, 1.75, "its values from 0 to 1.75 are taken as black to white"),
        (0.0, 1e9, "its values from 0 to 1e+09 are taken as black to white"),
    ],
)
def test_float_values(low: float, high: float, note: str | None) -> None:
    values = (RAMP * (high - low) + low).astype(np.float32)
    found, notes = shades(encode(values))
    expected = values * 255 if note is None else RAMP * 255
    np.testing.assert_allclose(found, expected, atol=1)
    assert notes == ([] if note is None else [note])


def test_float_values_that_are_no_numbers() -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    found, _ = shades(encode(values))
    assert found[0, :3].tolist() == [0, 255, 0]
    with pytest.raises(ImageError, match="none of the values of x is a finite number"):
        decode_image(encode(np.full((4, 4), np.nan, np.float32)), name="x")


def test_a_declared_range() -> None:
    tags = ImageFileDirectory_v2()
    tags[280], tags[281] = 0, 4095
    dark = np.rint(RAMP * 400).astype(np.uint16)
    found, notes = shades(encode(dark, tiffinfo=tags))
    np.testing.assert_allclose(found, RAMP * 400 / 4095 * 255, atol=1)
    assert notes == []
    tags[281] = 100  # what the values contradict does not count
    found, notes = shades(encode(dark, tiffinfo=tags))
    assert found.max() > 90 and len(notes) == 1


def test_a_pgm_declares_its_range() -> None:
    values = np.rint(RAMP * 400).astype(">u2")
    found, notes = shades(b"P5 8 8 4095\n" + values.tobytes())
    np.testing.assert_allclose(found, RAMP * 400 / 4095 * 255, atol=1)
    assert notes == []


@pytest.mark.parametrize(("most", "refused"), [(0, False), (4095, True), (65535, False)])
def test_colours_whose_low_bits_are_not_read(most: int, refused: bool) -> None:
    import struct
    import zlib

    values = np.broadcast_to(np.rint(RAMP * most).astype(">u2")[..., None], (8, 8, 3))
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    if refused:
        with pytest.raises(ImageError, match="less than a sixteenth of their range"):
            decode_image(data)
    else:
        assert decode_image(data).max() == (255 if most else 0)


def test_one_rule_of_size_for_device_and_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4 * MAX_ASPECT_RATIO, 4)).save(tmp_path / "long.png")
    assert read_image(tmp_path / "long.png").shape == (4, 4 * MAX_ASPECT_RATIO, 3)
    Image.new("RGB", (4, 4 * MAX_ASPECT_RATIO + 1)).save(tmp_path / "longer.png")
    with pytest.raises(ImageError, match="too long and thin: expected an aspect ratio of at most 50"):
        read_image(tmp_path / "longer.png")
    monkeypatch.setattr("asymcir_common.pictures.MAX_FILE_BYTES", 10)
    with pytest.raises(ImageError, match="is larger than"):
        read_image(tmp_path / "long.png")
