"""Fifty kinds of broken pictures in one build: none stops it, and each is listed with its reason."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import heic_files
import numpy as np
import pytest
from asymcir_server import BuildConfig, ServerBundle, build_gallery
from PIL import Image

OF_EACH = int(os.environ.get("OF_EACH", "2"))


def encode(form: str, **options: object) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.quantize(16) if form == "GIF" else image).save(stream, form, **options)
    return stream.getvalue()


FORMS = {
    "avif": encode("AVIF"),
    "bmp": encode("BMP"),
    "gif": encode("GIF"),
    "heic": heic_files.PLAIN,
    "jp2": encode("JPEG2000"),
    "jpg": encode("JPEG"),
    "png": encode("PNG"),
    "ppm": encode("PPM"),
    "tga": encode("TGA"),
    "tif": encode("TIFF"),
    "webp": encode("WEBP"),
}


def png(width: int, height: int, rows: bytes, *, bits: int = 8, kind: int = 2, checksum: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def broken(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield names that say what is wrong, with an ending that folders are searched for, and contents."""
    generator = np.random.default_rng(seed)
    for suffix, data in FORMS.items():
        yield f"empty.{suffix}", b""
        yield f"start only.{suffix}", data[: int(generator.integers(2, 12))]
        yield f"cut off.{suffix}", data[: len(data) // 3]
        yield f"zeros after the header.{suffix}", data[:10] + bytes(len(data))
    yield "text.png", b"<html>404 Not Found</html>"
    yield "script.jpg", b"#!/bin/sh\nexit 1\n"
    yield "noise.webp", generator.bytes(5000)
    yield "zip.png", b"PK\x03\x04" + generator.bytes(100)
    yield "pdf.jpg", b"%PDF-1.7\n" + generator.bytes(100)
    yield "postscript.tif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    yield "svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "giant.png", png(100_000, 100_000, b"")
    yield "bomb.png", png(60_000, 60_000, bytes(10**6))
    yield "above the limit.png", png(14_000, 14_000, bytes(10**6))
    yield "no width.png", png(0, 10, b"")
    yield "few rows.png", png(50, 50, bytes(500))
    yield "wrong sums.png", png(5, 5, bytes(80), checksum=1)
    yield "odd bits.png", png(5, 5, bytes(80), bits=3)
    yield "odd colours.png", png(5, 5, bytes(80), kind=5)
    yield "giant.heic", heic_files.claim_size(heic_files.PLAIN, 20_000, 20_000)
    yield "giant.avif", heic_files.claim_size(FORMS["avif"], 20_000, 20_000)
    yield "giant.bmp", FORMS["bmp"][:18] + struct.pack("<ii", 30_000, 30_000) + FORMS["bmp"][26:]
    yield "giant.gif", FORMS["gif"][:6] + struct.pack("<HH", 65_535, 65_535) + FORMS["gif"][10:]


def test_none_stops_the_build_and_each_has_its_reason(tmp_path: Path, bundle: ServerBundle) -> None:
    folder, names = tmp_path / "p", set[str]()
    for number in range(OF_EACH):
        (folder / str(number)).mkdir(parents=True)
        for name, data in broken(number):
            (folder / str(number) / name).write_bytes(data)
            names.add(f"{number}/{name}")
        (folder / str(number) / "gone.png").symlink_to("nowhere")
        (folder / str(number) / "loop.png").symlink_to("loop.png")
        os.mkfifo(folder / str(number) / "pipe.png")
        (folder / str(number) / "folder.png").mkdir()
        names |= {f"{number}/{name}.png" for name in ("gone", "loop", "pipe")}
    for suffix, data in FORMS.items():
        (folder / f"good.{suffix}").write_bytes(data)
    assert len(names) >= 50 * OF_EACH
    report = build_gallery(folder, bundle, tmp_path / "g", config=BuildConfig(thumbnail_side=16))
    lines = [json.loads(line) for line in (report.snapshot / "quarantine.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == names and len(lines) == report.quarantined == len(names)
    assert all(len(line["reason"]) > 20 and "\n" not in line["reason"] for line in lines)
    assert (report.size, sum(report.quarantined_by_reason.values())) == (len(FORMS), len(names))
    assert max(report.quarantined_by_reason.values()) >= len(FORMS) * OF_EACH


def test_names_that_are_hard_to_write_down(tmp_path: Path, bundle: ServerBundle) -> None:
    names = ["new\nline.png", "tab\t.png", 'quote".png', "ümlaut 😀.png", "..png", "a'; DROP TABLE items;--.png"]
    folder = tmp_path / "p"
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(png(2, 2, bytes([0, *[number] * 6] * 2)))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(FORMS["png"])
    (folder / "loop").symlink_to(folder)
    report = build_gallery(folder, bundle, tmp_path / "g")
    lines = [json.loads(line) for line in (report.snapshot / "quarantine.jsonl").read_text().splitlines()]
    assert report.size == len(names) - 1 and len(lines) == 2  # "..png" is hidden
    reasons = sorted(line["reason"].split(":")[0] for line in lines)
    assert reasons == ["a link to a folder is not followed", "the id or path is not UTF-8 text"]


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path: Path, bundle_folder: Path) -> None:
    """Four times as many pictures of four megapixels take no more memory."""
    data = png(2000, 2000, bytes(6001 * 2000))

    def peak_mb(count: int) -> float:
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").write_bytes(data + bytes([number]))  # another digest, the same picture
        code = (
            "import resource, sys; from asymcir_edge.cli import main; main(sys.argv[1:]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        arguments = ("gallery", "build", folder, "--server-bundle", bundle_folder, "--gallery", tmp_path / f"g{count}")
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=True
        )
        return float(done.stdout.splitlines()[-1])

    assert peak_mb(160) < peak_mb(40) * 1.2 + 20
