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
from asymcir_common.installation import how_to_install

if TYPE_CHECKING:
    from asymcir_common.places import PathReader

MAX_PIXELS = 178_000_000
"""Above this a file is refused before it is decoded: 534 MB of RGB. Pillow's own limit lies just above it."""

_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
_HEIC_STARTS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftyphevx", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")
_ISPE = re.compile(rb"ispe.{4}(.{8})", re.DOTALL)
_ORIENTATION = 0x0112  # the EXIF tag

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


def read_image(path: str | Path, reader: "PathReader | None" = None) -> NDArray[np.uint8]:
    """Read a picture file, whose path may lead into a zip or a tar ("queries.zip/woman.webp"); see `decode_image`.

    Args:
        path: the file.
        reader: keeps the directories of archives, for those who read many pictures of one.
    """
    path = Path(path)
    if reader is not None:
        return decode_image(reader.read(path), name=str(path))
    try:
        data = path.read_bytes()
    except NotADirectoryError:
        from asymcir_common.places import PathReader  # it imports what stands here

        data = PathReader().read(path)
    except OSError as exc:
        raise ImageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return decode_image(data, name=str(path))


def decode_image(data: bytes, *, name: str = "the picture") -> NDArray[np.uint8]:
    """Decode a picture to the pixels a person would see.

    EXIF orientation is applied, transparency is laid on white, CMYK, grey, palette and 16-bit become 8-bit RGB.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, AVIF, GIF (its first frame), TIFF, BMP and a few more; HEIC with the
            extra `heif`. Formats for which Pillow starts other programs (PostScript) are not read.
        name: how errors call it.

    Returns:
        [h, w, 3], uint8, RGB.

    Raises:
        ImageError: not a picture, truncated, or above MAX_PIXELS.
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
            image.load()  # decode fully here, so that a truncated file fails now
            return np.asarray(_to_rgb(_upright(image)))
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode == "F" and values.max(initial=0.0) <= 1.0:
            values = values * 255.0
        elif image.mode.startswith("I;16") or values.max(initial=0.0) > 255:
            values = values / 257.0  # 16 bit: 65535 is white
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, (*_BACKGROUND, 255))
        return Image.alpha_composite(canvas, layered).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # converting RGB to RGB copies it


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
