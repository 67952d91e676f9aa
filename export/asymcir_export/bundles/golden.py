"""The golden part of a device bundle: real pictures, hard ones made from them, and PyTorch's tokens for all.

`asymcir selftest` compares with them on the device. The pictures go where the bundle goes, so the export takes them
from the folder that it was given for its parity check: pictures in it must be fit to be passed on. File names and
EXIF data of the originals do not go along.

Notation: n golden pictures, L sentence tokens, D word-embedding width, S side of the square that the network sees.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from asymcir_common.pictures import MAX_ASPECT_RATIO
from asymcir_common.places import PathReader
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_edge.device.golden import (
    GOLDEN_FILE,
    GOLDEN_FOLDER,
    PACKAGE_SUFFIX,
    PICTURES_FOLDER,
    TOKENS_FILE,
    Agreement,
    compare_tokens,
    computes_in_float,
)
from asymcir_training import LightEncoder, normalise_pixels
from numpy.typing import NDArray
from PIL import Image

from asymcir_export.checks.parity import MAX_ERROR_TO_SPREAD, MIN_COSINE, check_parity
from asymcir_export.coreml.check import evaluate_coreml
from asymcir_export.errors import ExportError

GOLDEN_SOURCES = 4
"""Pictures taken from the folder; the tokens of one (L * D * 4 bytes) weigh more than a small picture."""

MAX_SOURCE_BYTES = 8_000
"""A picture file above this, or with EXIF data, is written anew, smaller."""

INT8_COSINE_ALLOWANCE, INT8_SPREAD_ALLOWANCE = 0.005, 0.1
"""How far an encoder that computes in int8 may fall below the cosine that the exporting machine measured, and exceed
its error to spread: kernels of other processors sum in another order and round otherwise at the edges of a step."""

FLOAT_COSINE_ALLOWANCE, FLOAT_SPREAD_ALLOWANCE = 0.001, 0.1
"""The same for an encoder that computes in float, where rounding in the resize takes it past its thresholds: golden
pictures are of any size, and the tokens of a young model barely spread (see checks/resizing.py)."""

COREML_COSINE_ALLOWANCE, COREML_SPREAD_ALLOWANCE = 0.01, 0.25
"""The same for a Core ML package, evaluated operator by operator here: Apple's Neural Engine accumulates in fp16."""

LATENCY_PICTURE = "square.webp"

_QUALITY = 80
_PALETTE_COLOURS = 32
_LEAST_SIDE = 32
_ORIENTATION, _TURNED = 0x0112, 6  # the EXIF tag, and its value where the camera was turned by a quarter
_PERSONAL = {"exif", "xmp", "XML:com.adobe.xmp", "comment", "photoshop"}

_logger = logging.getLogger(__name__)


def write_golden(folder: Path, encoder: LightEncoder, pictures: Sequence[Path]) -> dict[str, Any]:
    """Write `golden/` into a device bundle whose encoders are there, and hold them to it.

    Args:
        folder: the bundle, with a manifest that names its encoders; the manifest has to be written again afterwards.
        encoder: what the bundle was made from, in eval mode.
        pictures: files to take GOLDEN_SOURCES of, small ones first; a path may lead into an archive.

    Returns:
        For the manifest's property `golden`: `file`, `pictures`, `size_bytes`, and by precision what was measured.

    Raises:
        ExportError: none of the pictures can be used.
        ParityError: an encoder that computes in float is not the one that it was made from.
    """
    spec = encoder.preprocessing
    files = choose_pictures(pictures, side=2 * spec.size)
    files |= _make_hard([decode_image(data, name=name) for name, data in files.items()], spec)
    decoded = {name: decode_image(data, name=name) for name, data in files.items()}
    squares = np.stack([preprocess(pixels, spec) for pixels in decoded.values()])  # [n, S, S, 3]
    with torch.inference_mode():
        tokens = encoder(normalise_pixels(torch.from_numpy(squares), spec)).numpy().astype(np.float32)  # [n, L, D]
    measured, thresholds = _measure(DeviceBundle.load(folder), decoded, squares, tokens)
    for package in sorted(folder.glob(f"*{PACKAGE_SUFFIX}")):
        agreement = compare_tokens(tokens, np.stack(evaluate_coreml(package, list(squares))))
        measured[package.name] = asdict(agreement)
        thresholds[package.name] = _allow(agreement, COREML_COSINE_ALLOWANCE, COREML_SPREAD_ALLOWANCE)
    golden = folder / GOLDEN_FOLDER
    (golden / PICTURES_FOLDER).mkdir(parents=True)
    for name, data in files.items():
        (golden / PICTURES_FOLDER / name).write_bytes(data)
    np.save(golden / TOKENS_FILE, tokens)
    record = {
        "tokens": TOKENS_FILE,
        "latency_picture": LATENCY_PICTURE,
        "pictures": [
            {"file": name, "width": pixels.shape[1], "height": pixels.shape[0]} for name, pixels in decoded.items()
        ],
        "thresholds": thresholds,
    }
    (golden / GOLDEN_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    size_bytes = sum(path.stat().st_size for path in golden.rglob("*") if path.is_file())
    _logger.info("wrote %s, %d pictures, %.0f kB", GOLDEN_FOLDER, len(files), size_bytes / 1e3)
    return {
        "file": f"{GOLDEN_FOLDER}/{GOLDEN_FILE}",
        "pictures": len(files),
        "size_bytes": size_bytes,
        "measured": measured,
    }


def _measure(
    bundle: DeviceBundle,
    pictures: Mapping[str, NDArray[np.uint8]],
    squares: NDArray[np.uint8],
    tokens: NDArray[np.float32],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run every encoder on the golden pictures; return what was measured and what a device is held to."""
    measured: dict[str, Any] = {}
    thresholds: dict[str, Any] = {}
    for precision in bundle.encoders:
        query_encoder = QueryEncoder(bundle, precision=precision)
        found = np.stack([query_encoder.encode_image(pixels) for pixels in pictures.values()])
        agreement = compare_tokens(tokens, found)
        if computes_in_float(precision):
            storage = bundle.weight_storage
            prepared = np.stack([query_encoder.encode_image(square) for square in squares])
            name = f"golden tokens, {precision}"
            check_parity(name, tokens, prepared, storage=storage, pictures=list(pictures))
            limits = {"cosine_min": MIN_COSINE[storage], "error_to_spread_max": MAX_ERROR_TO_SPREAD[storage]}
            allowed = _allow(agreement, FLOAT_COSINE_ALLOWANCE, FLOAT_SPREAD_ALLOWANCE)
            if agreement.cosine_min < limits["cosine_min"]:
                limits["cosine_min"] = allowed["cosine_min"]
            if agreement.error_to_spread > limits["error_to_spread_max"]:
                limits["error_to_spread_max"] = allowed["error_to_spread_max"]
        else:
            limits = _allow(agreement, INT8_COSINE_ALLOWANCE, INT8_SPREAD_ALLOWANCE)
        measured[precision] = asdict(agreement)
        thresholds[precision] = limits
    return measured, thresholds


def _allow(agreement: Agreement, cosine: float, spread: float) -> dict[str, float]:
    """Return thresholds that lie this far from what was measured."""
    return {
        "cosine_min": agreement.cosine_min - cosine,
        "error_to_spread_max": agreement.error_to_spread + spread,
    }


def choose_pictures(pictures: Sequence[Path], *, side: int) -> dict[str, bytes]:
    """Take GOLDEN_SOURCES pictures, evenly spaced: small files as they are, others only where those are too few.

    Args:
        pictures: files; a path may lead into an archive.
        side: longest of a picture that is written anew.

    Returns:
        Name -> file.

    Raises:
        ExportError: none of the pictures can be used.
    """
    reader = PathReader()
    small = [path for path in pictures if reader.size(path) <= MAX_SOURCE_BYTES]
    large = [path for path in pictures if reader.size(path) > MAX_SOURCE_BYTES]
    files: dict[str, bytes] = {}
    for path in [*_evenly(small), *_evenly(large)]:
        if len(files) == GOLDEN_SOURCES:
            break
        try:
            data = _fit(reader.read(path), side=side)
        except ImageError:
            continue
        files[f"picture_{len(files)}.{'webp' if data.startswith(b'RIFF') else path.suffix.lower()[1:]}"] = data
    if not files:
        raise ExportError(
            f"expected at least one picture to make golden ones of, found none that can be read and is no longer than "
            f"{MAX_ASPECT_RATIO} times its width, among {len(pictures)} files"
        )
    return files


def _evenly(paths: Sequence[Path]) -> Iterator[Path]:
    """Give GOLDEN_SOURCES evenly spaced paths first, then the others: these are for where one cannot be read."""
    first = [paths[i * len(paths) // GOLDEN_SOURCES] for i in range(GOLDEN_SOURCES)] if paths else []
    yield from dict.fromkeys([*first, *paths])


def _fit(data: bytes, *, side: int) -> bytes:
    """Return a picture file as it is if it is small and carries no EXIF data; else a smaller one without."""
    pixels = decode_image(data)
    if max(pixels.shape[:2]) > MAX_ASPECT_RATIO * min(pixels.shape[:2]):
        raise ImageError("too long and thin")
    with Image.open(io.BytesIO(data)) as opened:
        if len(data) <= MAX_SOURCE_BYTES and not opened.getexif() and not opened.info.keys() & _PERSONAL:
            return data
    image = Image.fromarray(pixels)
    while True:
        image.thumbnail((side, side))
        smaller = _save(image, "WEBP", quality=_QUALITY)
        if len(smaller) <= MAX_SOURCE_BYTES or side < _LEAST_SIDE:
            return smaller
        side = side * 3 // 4


def _make_hard(sources: Sequence[NDArray[np.uint8]], spec: Preprocessing) -> dict[str, bytes]:
    """Make the pictures that trip a preprocessing of someone's own, out of real ones.

    Args:
        sources: [h, w, 3] each; used in turn where they are few.
        spec: what the network sees, and so the sizes to make.
    """
    squares = [Image.fromarray(preprocess(sources[i % len(sources)], spec)) for i in range(4)]
    size = spec.size
    # More pixels than the network sees and fine detail in them: shrinking without antialias shows.
    tiles = Image.new("RGB", (3 * size, 2 * size))
    for place in range(6):
        tiles.paste(squares[place % len(squares)], (place % 3 * size, place // 3 * size))
    turned = tiles.transpose(Image.Transpose.ROTATE_90)  # as a camera held upright stores it
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURNED
    half = max(1, size // 2)
    translucent = squares[3].resize((3 * half // 2 or 1, half)).convert("RGBA")
    translucent.putalpha(Image.linear_gradient("L").resize(translucent.size))
    grey = np.asarray(squares[0].convert("L").resize((half, 2 * half)), dtype=np.uint16)
    return {
        LATENCY_PICTURE: _save(squares[0], "WEBP", quality=_QUALITY),
        "not_square.webp": _save(
            squares[1].crop((size // 8, 0, max(1, size * 5 // 8), size)), "WEBP", quality=_QUALITY
        ),
        "turned_by_exif.jpg": _save(turned, "JPEG", quality=_QUALITY, exif=exif),
        "grey.png": _save(squares[2].convert("L").resize((half, half)), "PNG", optimize=True),
        "palette_with_alpha.png": _save(
            translucent.quantize(_PALETTE_COLOURS, method=Image.Quantize.FASTOCTREE), "PNG", optimize=True
        ),
        "grey_16_bit.png": _save(Image.fromarray(grey * 257), "PNG"),  # 65535 is white
        "one_pixel.png": _save(squares[3].resize((1, 1)), "PNG"),
    }


def _save(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
