"""Decoding a source of pictures in worker threads, in order and in bounded memory.

The number of pictures on the way is bounded, and so is the number of large ones, so memory grows neither with the
gallery nor with the number of threads. A picture that cannot be decoded is rejected with the reason, and the rest go
on.
"""

import io
import logging
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from asymcir_common.places import Rejected
from numpy.typing import NDArray
from PIL import Image

from asymcir_server.gallery.sources import Entry, Source

LARGE_PIXELS = 16_000_000
"""Pictures above this are decoded one at a time, all by one thread: decoding takes some 10 bytes per pixel, and each
thread that did it once keeps part of that in its own heap."""

_log = logging.getLogger(__name__)


def decode_batches(
    source: Source, spec: Preprocessing, *, batch_size: int, workers: int = 0
) -> Generator[tuple[list[Entry], NDArray[np.uint8], list[Rejected]], None, None]:
    """Decode a source.

    Args:
        source: the pictures.
        spec: how they are resized and cropped.
        batch_size: pictures per batch, at most.
        workers: threads; 0: one per core, at most 8.

    Yields:
        Batches in the source's order: entries, their pixels [b, S, S, 3], and what was rejected on the way.
    """
    workers = workers or min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(1, "decode-large") as large, ThreadPoolExecutor(workers, "decode") as pool:
        pending: deque[Rejected | tuple[Entry, Future[NDArray[np.uint8]]]] = deque()
        items = iter(source)
        entries: list[Entry] = []
        pixels: list[NDArray[np.uint8]] = []
        rejected: list[Rejected] = []
        try:
            while True:
                for item in islice(items, batch_size + 2 * workers - len(pending)):
                    pending.append(
                        item if isinstance(item, Rejected) else (item, pool.submit(_load, item, spec, large))
                    )
                if not pending:
                    break
                first = pending.popleft()
                if isinstance(first, Rejected):
                    rejected.append(first)
                else:
                    entry, future = first
                    try:
                        pixels.append(future.result())
                        entries.append(entry)
                    except ImageError as exc:
                        rejected.append(Rejected(id=entry.id, path=entry.path, reason=str(exc)))
                if len(entries) == batch_size or len(rejected) >= batch_size:
                    yield entries, _stack(pixels, spec), rejected
                    entries, pixels, rejected = [], [], []
            if entries or rejected:
                yield entries, _stack(pixels, spec), rejected
        finally:
            for left in pending:
                if not isinstance(left, Rejected):
                    left[1].cancel()


def _load(entry: Entry, spec: Preprocessing, large: ThreadPoolExecutor) -> NDArray[np.uint8]:
    try:
        data = entry.read()
        if _is_large(data):
            return large.submit(_prepare, data, entry.id, spec).result()
        return _prepare(data, entry.id, spec)
    except ImageError:
        raise
    except Exception as exc:  # decoders meet hostile files: whatever one raises concerns this picture only
        _log.debug("decoding %s failed", entry.id, exc_info=True)
        raise ImageError(f"cannot decode {entry.id}: {type(exc).__name__}: {exc}") from exc


def _prepare(data: bytes, name: str, spec: Preprocessing) -> NDArray[np.uint8]:
    return preprocess(decode_image(data, name=name), spec)


def _is_large(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            return image.width * image.height > LARGE_PIXELS
    except Exception:  # decoding says what is wrong with it
        return False


def _stack(pixels: list[NDArray[np.uint8]], spec: Preprocessing) -> NDArray[np.uint8]:
    return np.stack(pixels) if pixels else np.empty((0, spec.size, spec.size, 3), dtype=np.uint8)
