"""Reading and decoding a source of pictures in worker threads, in order and in bounded memory.

A picture whose file is known by its digest is not decoded. Threads, not processes: zlib, libjpeg and Pillow's resizing
work without the interpreter's lock, and a process would have to send the pixels back. Pictures a second on two cores
that other work used too, two threads against two processes: JPEG of 12 megapixels 2.8 and 3.1, PNG of 512 pixels 39
and 37, JPEG of 512 pixels 146 and 84.

The number of pictures on the way is bounded, and so is the number of large ones, so memory grows neither with the
gallery nor with the number of threads. A picture that cannot be decoded is rejected with the reason, and the rest go
on.
"""

import hashlib
import io
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from asymcir_common.places import Rejected
from numpy.typing import NDArray
from PIL import Image

from asymcir_server.gallery.sources.encoded import Encoded, PictureMemory, Wanted
from asymcir_server.gallery.sources.entries import Entry
from asymcir_server.gallery.sources.near_duplicates import hash_picture
from asymcir_server.gallery.sources.thumbnails import make_thumbnail

LARGE_PIXELS = 16_000_000
"""Pictures above this are decoded one at a time, all by one thread: decoding takes some 10 bytes per pixel, and each
thread that did it once keeps part of that in its own heap."""

_KNOWN_PER_BATCH = 16
"""A batch ends at this many times its size, even where most of it is known already."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedPicture:
    """One picture that can be used.

    Attributes:
        entry: which.
        digest: SHA-256 of its file.
        known: what is known of it, now with thumbnail and hash where they are wanted.
        pixels: [S, S, 3], uint8; None where the vector is known.
        decoded: whether it had to be decoded.
        notes: what was assumed when it was decoded, a sentence each.
    """

    entry: Entry
    digest: bytes
    known: Encoded
    pixels: NDArray[np.uint8] | None
    decoded: bool
    notes: tuple[str, ...] = ()


def decode_batches(
    source: Iterable[Entry | Rejected],
    spec: Preprocessing,
    encoded: PictureMemory,
    wanted: Wanted,
    *,
    batch_size: int,
    workers: int = 0,
) -> Generator[tuple[list[DecodedPicture], list[Rejected]], None, None]:
    """Read a source, and decode what is not known.

    Args:
        source: the pictures.
        spec: how they are resized and cropped.
        encoded: what is known.
        wanted: what the build makes of each.
        batch_size: pictures per batch that have to be encoded, at most.
        workers: threads; 0: one per core, at most 8.

    Yields:
        Batches in the source's order: pictures, and what was rejected on the way.
    """
    workers = workers or min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(1, "decode-large") as large, ThreadPoolExecutor(workers, "decode") as pool:
        loader = _Loader(spec, encoded, wanted, large)
        pending: deque[Rejected | tuple[Entry, Future[DecodedPicture]]] = deque()
        items = iter(source)
        pictures: list[DecodedPicture] = []
        rejected: list[Rejected] = []
        unknown = 0
        try:
            while True:
                for item in islice(items, batch_size + 2 * workers - len(pending)):
                    pending.append(item if isinstance(item, Rejected) else (item, pool.submit(loader.load, item)))
                if not pending:
                    break
                first = pending.popleft()
                if isinstance(first, Rejected):
                    rejected.append(first)
                else:
                    entry, future = first
                    try:
                        picture = future.result()
                        unknown += picture.pixels is not None
                        pictures.append(picture)
                    except ImageError as exc:
                        rejected.append(Rejected(id=entry.id, path=entry.path, reason=str(exc)))
                if unknown == batch_size or len(pictures) + len(rejected) >= _KNOWN_PER_BATCH * batch_size:
                    yield pictures, rejected
                    pictures, rejected, unknown = [], [], 0
            if pictures or rejected:
                yield pictures, rejected
        finally:
            for left in pending:
                if not isinstance(left, Rejected):
                    left[1].cancel()


class _Loader:
    """What a worker does with one entry."""

    def __init__(self, spec: Preprocessing, encoded: PictureMemory, wanted: Wanted, large: ThreadPoolExecutor) -> None:
        self._spec, self._encoded, self._wanted, self._large = spec, encoded, wanted, large

    def load(self, entry: Entry) -> DecodedPicture:
        try:
            data = entry.read()
            digest = hashlib.sha256(data).digest()
            known = self._encoded.find(digest)
            if not known.needs_pixels(self._wanted):
                return DecodedPicture(entry=entry, digest=digest, known=known, pixels=None, decoded=False)
            if _is_large(data):
                square, made, notes = self._large.submit(self._prepare, data, entry.id).result()
            else:
                square, made, notes = self._prepare(data, entry.id)
            pixels = square if known.vector is None else None
            known = known.or_else(made)
            return DecodedPicture(
                entry=entry, digest=digest, known=known, pixels=pixels, decoded=True, notes=tuple(notes)
            )
        except ImageError:
            raise
        except sqlite3.Error:  # the gallery's own file, not the picture's
            raise
        except Exception as exc:  # decoders meet hostile files: whatever one raises concerns this picture only
            _log.debug("decoding %s failed", entry.id, exc_info=True)
            raise ImageError(f"cannot decode {entry.id}: {type(exc).__name__}: {exc}") from exc

    def _prepare(self, data: bytes, name: str) -> tuple[NDArray[np.uint8], Encoded, list[str]]:
        notes = list[str]()
        pixels = decode_image(data, name=name, notes=notes)
        square = preprocess(pixels, self._spec)
        side = self._wanted.thumbnail_side
        made = Encoded(
            thumbnail=make_thumbnail(pixels, side) if side else None,
            picture_hash=hash_picture(square) if self._wanted.picture_hash else None,
        )
        return square, made, notes


def _is_large(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            return image.width * image.height > LARGE_PIXELS
    except Exception:  # decoding says what is wrong with it
        return False
