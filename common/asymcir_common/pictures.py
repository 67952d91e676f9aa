"""Pictures in: one decoding and one resizing for the device, the gallery and training.

Apps that re-implement preprocessing get wrong pixels and notice late, so there is one specification, kept as data in
every bundle, and one implementation of it. `preprocess` is the reference that the exported graphs are compared with.
"""

import functools
import io
import logging
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from asymcir_common.errors import ImageError
from asymcir_common.files import MAX_FILE_BYTES
from asymcir_common.installation import how_to_install

if TYPE_CHECKING:
    from asymcir_common.places import PathReader

MAX_PIXELS = 178_000_000
"""Above this a file is refused before it is decoded: 534 MB of RGB. Pillow's own limit lies just above it."""

MAX_ASPECT_RATIO = 50
"""A longer strip is refused, on the device and in a gallery alike: a graph may resize the whole picture before it
crops, and the square in the middle of such a strip says nothing about it."""

_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
_HEIC_STARTS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftyphevx", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")
_ISPE = re.compile(rb"ispe.{4}(.{8})", re.DOTALL)
_ORIENTATION = 0x0112  # the EXIF tag

_BITS, _SAMPLE_FORMAT, _MIN_SAMPLE, _MAX_SAMPLE, _S_MIN, _S_MAX = 258, 339, 280, 281, 340, 341  # TIFF 6.0, pages 90 ff.
_PNG_START = b"\x89PNG\r\n\x1a\n"
_BACKGROUND = (255, 255, 255)
_log = logging.getLogger(__name__)

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Preprocessing as data.

    With resize "shortest", the shortest side is resized to `size` (antialiased, keeping the aspect ratio, the other
    side rounded down), then the centre `size` x `size` is cropped (offset rounded half to even, as torchvision does).
    With "squash" (SigLIP), both sides are resized to `size`. Then (pixels / 255 - mean) / std.

    Attributes:
        size: side of the square that the network sees, pixels.
        resize: "shortest" or "squash".
        interpolation: "bilinear" or "bicubic", both antialiased as Pillow does it.
        mean, std: per channel, of pixels in [0, 1].
    """

    size: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["shortest", "squash"] = "shortest"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ImageError(f"expected a preprocessing size above 0, got {self.size}")
        if self.interpolation not in _RESAMPLING:
            raise ImageError(f"expected the interpolation bilinear or bicubic, got {self.interpolation!r}")
        if self.resize not in {"shortest", "squash"}:
            raise ImageError(f"expected resize shortest or squash, got {self.resize!r}: this needs a newer asymcir")

    def to_json(self) -> dict[str, Any]:
        """Return the form that stands in a manifest."""
        return {
            "size": self.size,
            "resize": self.resize,
            "crop": "center",
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Preprocessing":
        """Read the form that stands in a manifest."""
        try:
            if record["crop"] != "center":
                raise ImageError(f"expected crop=center, got {record['crop']!r}: this bundle needs a newer asymcir")
            red, green, blue = (float(value) for value in record["mean"])
            std_red, std_green, std_blue = (float(value) for value in record["std"])
            return cls(
                size=int(record["size"]),
                interpolation=record["interpolation"],
                mean=(red, green, blue),
                std=(std_red, std_green, std_blue),
                resize=record["resize"],
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ImageError(f"the preprocessing is not readable ({type(exc).__name__}: {exc}): {record!r}") from exc


def read_image(
    path: str | Path, reader: "PathReader | None" = None, *, notes: list[str] | None = None
) -> NDArray[np.uint8]:
    """Read a picture file, whose path may lead into a zip or a tar ("queries.zip/woman.webp"); see `decode_image`.

    Args:
        path: the file.
        reader: keeps the directories of archives, for those who read many pictures of one.
        notes: see `decode_image`.
    """
    path = Path(path)
    if reader is not None:
        return decode_image(reader.read(path), name=str(path), notes=notes)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: scale it down first")
        data = path.read_bytes()
    except NotADirectoryError:
        from asymcir_common.places import PathReader  # it imports what stands here

        data = PathReader().read(path)
    except OSError as exc:
        raise ImageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return decode_image(data, name=str(path), notes=notes)


def decode_image(data: bytes, *, name: str = "the picture", notes: list[str] | None = None) -> NDArray[np.uint8]:
    """Decode a picture to the pixels a person would see.

    EXIF orientation is applied, transparency is laid on white, CMYK, grey and palette become 8-bit RGB. Grey values of
    more than 8 bits are scaled by the range that the file declares (TIFF's MinSampleValue and MaxSampleValue), or else
    by the one that they use: 12-bit data in a 16-bit file are not nearly black; see `_find_range`.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, AVIF, GIF (its first frame), TIFF, BMP and a few more; HEIC with the
            extra `heif`. Formats for which Pillow starts other programs (PostScript) are not read.
        name: how errors call it.
        notes: gets a sentence where a range had to be found.

    Returns:
        [h, w, 3], uint8, RGB.

    Raises:
        ImageError: not a picture, truncated, above MAX_PIXELS or MAX_ASPECT_RATIO, or of values without a range.
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes): expected a picture file")
    try:
        with Image.open(io.BytesIO(data), formats=_readable_formats()) as image:
            width, height = image.size
            if image.format == "HEIF":
                width, height = max((image.size, *_coded_sizes(data)), key=math.prod)
            if width * height > MAX_PIXELS:
                raise _too_large(name, f"is {width}x{height}")
            check_aspect(*image.size, name=name)
            image.load()  # decode fully here, so that a truncated file fails now
            found, note = _to_rgb(_upright(image), image, name)
            if _lost_low_bits(data, found):
                raise ImageError(
                    f"the 16-bit colours of {name} use less than a sixteenth of their range, of which only the upper 8 "
                    "bits are read: scale them to the whole range first"
                )
            if note and notes is not None:
                notes.append(note)
            return np.asarray(found)
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise _too_large(name, "has more pixels than Pillow decodes") from exc
    except Exception as exc:  # Pillow's plugins let struct.error, IndexError and others out for damaged files
        detail = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        if isinstance(exc, UnidentifiedImageError):
            detail = "not a picture format that can be read"
            if data[4:12] in _HEIC_STARTS and "HEIF" not in Image.OPEN:
                detail = f"a HEIC picture: install what reads it with `{how_to_install('heif')}`"
        raise ImageError(f"cannot decode {name}: {detail}; expected a complete PNG, JPEG, WebP, ... file") from exc


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    Image.init()
    try:
        import pi_heif  # the decoder alone: 4 MB installed; pillow-heif brings an encoder too, 26 MB, under the GPL
    except ImportError:
        _log.debug("HEIC pictures are not read: pi-heif is not installed")
    else:
        pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return tuple(form for form in _FORMATS if form in Image.OPEN)


def _coded_sizes(data: bytes) -> list[tuple[int, int]]:
    """Return the sizes that the header of a HEIC file states: of what is decoded, of which the picture may be a part.

    Source: ISO/IEC 14496-12 (boxes), 23008-12 (`ispe`: 4 bytes of version and flags, then width and height).
    """
    start = 0
    while start + 8 <= len(data):
        (size,), kind = struct.unpack_from(">I", data, start), data[start + 4 : start + 8]
        if kind == b"meta":
            found = _ISPE.findall(data[start : start + size] if size else data[start:])
            return [struct.unpack(">II", sizes) for sizes in found]
        if size < 8:  # a box to the end of the file, or of 64 bits; neither stands before the header
            break
        start += size
    return []


def _too_large(name: str, what: str) -> ImageError:
    return ImageError(f"{name} {what}, above the limit of {MAX_PIXELS // 1_000_000} megapixels: scale it down first")


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data beside good pixels: taken as upright
        return image


def check_aspect(width: int, height: int, *, name: str = "the picture") -> None:
    """Refuse a strip; raises ImageError above MAX_ASPECT_RATIO."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{name} is {width}x{height}, too long and thin: expected an aspect ratio of at most {MAX_ASPECT_RATIO}; "
            "crop it first"
        )


def _to_rgb(image: Image.Image, opened: Image.Image, name: str) -> tuple[Image.Image, str]:
    """Return 8-bit RGB, and what had to be assumed about the values of `opened`, the file as it is; or nothing."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if _is_unsigned_32(opened):
            values = values.view(np.uint32)
        low, high, note = _find_range(values, _declared_range(opened), name)
        finite = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
        scaled = (finite - low) * (255.0 / (high - low))
        return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8)).convert("RGB"), note
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, (*_BACKGROUND, 255))
        return Image.alpha_composite(canvas, layered).convert("RGB"), ""
    return (image if image.mode == "RGB" else image.convert("RGB")), ""  # converting RGB to RGB copies it


def _declared_range(image: Image.Image) -> tuple[float, float] | None:
    """Return the values of black and white that a file declares; None where it declares none."""
    if image.format in {"PPM", "JPEG2000"} and image.mode.startswith("I"):
        return 0.0, 65535.0  # Pillow scales these formats' own range to 16 bits
    tags = getattr(image, "tag_v2", {})
    for least, most in ((_S_MIN, _S_MAX), (_MIN_SAMPLE, _MAX_SAMPLE)):
        low, high = (value[0] if isinstance(value, tuple) else value for value in (tags.get(least, 0), tags.get(most)))
        if isinstance(high, int | float) and isinstance(low, int | float) and math.isfinite(high) and high > low:
            return float(low), float(high)
    return None


def _is_unsigned_32(image: Image.Image) -> bool:
    """Whether Pillow reads the unsigned 32-bit values of a TIFF as signed ones."""
    tags = getattr(image, "tag_v2", {})
    return image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,)


def _find_range(values: NDArray[Any], declared: tuple[float, float] | None, name: str) -> tuple[float, float, str]:
    """Return the values of black and of white, and a note where they were found and not declared.

    | values | black and white |
    |---|---|
    | within the declared range | that range |
    | float in [0, 1] | 0 and 1 |
    | integers from 0 to 65535 of more than 14 bits, or 8-bit data made 16-bit (multiples of 256, 257) | 0, 65535 |
    | other integers from 0 on | 0 and the largest number of 8, 10, 12, 14, 16 bits, or else the largest value |
    | everything else | the smallest value, or 0 where none is below, and the largest |

    Raises:
        ImageError: no value is finite.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        raise ImageError(f"none of the values of {name} is a finite number: it has no black and no white")
    least, most = float(finite.min()), float(finite.max())
    if declared is not None and declared[0] <= least and most <= declared[1]:
        return *declared, ""
    if values.dtype.kind == "f" and least >= 0 and most <= 1:
        return 0.0, 1.0, ""
    whole = values.dtype.kind != "f" or bool((finite == np.rint(finite)).all())
    if whole and least >= 0 and most <= 65535:
        numbers = finite.astype(np.uint16)
        bits = next(bits for bits in (8, 10, 12, 14, 16) if most < 1 << bits)
        if most > 0 and (bits == 16 or not (numbers % 256).any() or not (numbers % 257).any()):
            return 0.0, 65535.0, ""
        return (
            0.0,
            float((1 << bits) - 1),
            "" if most == 0 else f"its values are taken as {bits}-bit data: they go up to {most:g}",
        )
    low = min(0.0, least)
    high = most if most > low else low + 1.0
    return low, high, f"its values from {low:g} to {high:g} are taken as black to white"


def _lost_low_bits(data: bytes, image: Image.Image) -> bool:
    """Whether a PNG of 16-bit colours, whose lower halves Pillow drops, seems to hold data of fewer bits in them."""
    if not data.startswith(_PNG_START) or data[24] != 16 or data[25] not in (2, 6):  # bit depth, colour type
        return False
    return 0 < max(most for _, most in image.getextrema()) < 16  # type: ignore[misc]


def preprocess(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop; normalisation is left to the graph.

    Args:
        pixels: [h, w, 3], RGB, any size.

    Returns:
        [size, size, 3], uint8.

    Raises:
        ImageError: pixels is not [h, w, 3] uint8.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ImageError(f"expected pixels [h, w, 3] uint8, got {list(pixels.shape)} {pixels.dtype}")
    if spec.resize == "squash":
        return np.asarray(Image.fromarray(pixels).resize((spec.size, spec.size), _RESAMPLING[spec.interpolation]))
    height, width = pixels.shape[:2]
    shortest = min(height, width)
    resized_height = spec.size * height // shortest
    resized_width = spec.size * width // shortest
    top, left = round((resized_height - spec.size) / 2), round((resized_width - spec.size) / 2)
    image = Image.fromarray(pixels)
    # Resizing only the part that survives the crop: the same pixels, and no giant intermediate for a 1x50000 strip.
    scale_y, scale_x = height / resized_height, width / resized_width
    box = (left * scale_x, top * scale_y, (left + spec.size) * scale_x, (top + spec.size) * scale_y)
    clipped = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height)))
    if not all(math.isfinite(edge) for edge in clipped):
        raise ImageError(f"cannot resize a picture of {width}x{height}")
    return np.asarray(image.resize((spec.size, spec.size), _RESAMPLING[spec.interpolation], box=clipped))
