"""Pictures by number, from wherever they are: what the scan, the cache and the batches read.

Notation: n pictures, S picture side.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from numpy.typing import NDArray
from PIL import Image

from asymcir_training.errors import DataError
from asymcir_training.pictures.archives import ArchiveFiles
from asymcir_training.pictures.digests import digest_pictures
from asymcir_training.pictures.origins import (
    ARCHIVE_SUFFIXES,
    LIST_SUFFIXES,
    ArchiveOrigin,
    FolderOrigin,
    ListOrigin,
    Origin,
)
from asymcir_training.pictures.packed_strings import LazyStrings
from asymcir_training.pictures.path_specs import KINDS, expand_spec

_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)

_log = logging.getLogger(__name__)


@runtime_checkable
class PictureSet(Protocol):
    """What training reads pictures from. Picklable, so that workers have it too.

    Attributes:
        keys: [n], unique; the same in every run over the same data, wherever it lies.
        digest: over keys and byte sizes (not over times of change, nor over the pictures' bytes).
        problems: (key, reason) of what cannot be a picture, known without reading one; not among the n.
    """

    keys: Sequence[str]
    digest: str
    problems: Sequence[tuple[str, str]]

    def __len__(self) -> int:
        """Return n."""

    def read(self, number: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""

    def captions(self, number: int) -> tuple[str, ...]:
        """Return its captions, none if it has none."""

    def record(self, number: int) -> dict[str, Any]:
        """Return what else is known about it."""

    def decode(self, number: int, spec: Preprocessing) -> NDArray[np.uint8]:
        """Return it as a network sees it, [S, S, 3]; ImageError when it is corrupt."""


class Pictures:
    """Pictures of folders, archives and lists, one after another.

    Attributes: see PictureSet.
    """

    def __init__(self, origins: Sequence[Origin]) -> None:
        self._origins = tuple(origins)
        self._ends = np.cumsum([len(origin.names) for origin in origins])
        self.keys: Sequence[str] = _Keys(self._origins, self._ends)
        self.digest = _digest_origins(self._origins)
        several = len(self._origins) > 1
        self.problems: Sequence[tuple[str, str]] = tuple(
            (f"{origin.label}/{name}".rstrip("/") if several or not name else name, reason)
            for origin in origins
            for name, reason in origin.problems
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, number: int) -> bytes:
        """Return a picture's file.

        Raises:
            ImageError: it cannot be read; names the key.
        """
        origin, row = self._find(number)
        return origin.read(row)

    def captions(self, number: int) -> tuple[str, ...]:
        """Return the lines of the .txt of its name; without one, "caption" and "captions" of its records."""
        text, records = self._read_texts(number)
        if text is not None:
            lines = text.decode("utf-8-sig", "replace").splitlines()
        else:
            lines = [caption for record in records for caption in _captions_of(record)]
        return tuple(line.strip() for line in lines if line.strip())

    def record(self, number: int) -> dict[str, Any]:
        """Return its line of a list, or the .json of its name; {} for neither. Of several lines, the first."""
        return next(iter(self._read_texts(number)[1]), {})

    def decode(self, number: int, spec: Preprocessing) -> NDArray[np.uint8]:
        """Return it as a network sees it, without normalisation: [S, S, 3].

        Raises:
            ImageError: it cannot be read or is corrupt; names the key.
        """
        return preprocess(decode_image(self.read(number), name=self.keys[number]), spec)

    def _find(self, number: int) -> tuple[Origin, int]:
        place = range(len(self))[number]
        which = int(np.searchsorted(self._ends, place, side="right"))
        return self._origins[which], place - (int(self._ends[which - 1]) if which else 0)

    def _read_texts(self, number: int) -> tuple[bytes | None, list[dict[str, Any]]]:
        """Read what stands beside a picture; what is damaged there is left out, and logged."""
        origin, row = self._find(number)
        try:
            text, raw = origin.read_texts(row)
        except (ImageError, OSError) as exc:
            _log.warning("the texts of %s are left out: %s", self.keys[number], exc)
            return None, []
        records = []
        for part in raw:
            try:
                record = json.loads(part.decode("utf-8-sig"))
            except (ValueError, RecursionError) as exc:
                _log.warning("the record of %s is left out, as it is not JSON: %s", self.keys[number], exc)
                continue
            if isinstance(record, dict):
                records.append(record)
        return text, records


class Wordless:
    """The part of a `PictureSet` whose pictures come without texts."""

    def captions(self, number: int) -> tuple[str, ...]:
        """Return none."""
        del number
        return ()

    def record(self, number: int) -> dict[str, Any]:
        """Return nothing."""
        del number
        return {}


class ArrayPictures(Wordless):
    """Decoded pictures in memory, for those who render or decode their own.

    Attributes: see PictureSet. The key of picture 17 of the first array is "0:17".
    """

    def __init__(self, arrays: Sequence[NDArray[np.uint8]]) -> None:
        """Take arrays.

        Args:
            arrays: [n_i, S, S, 3] each, uint8.

        Raises:
            DataError: arrays of another form, or none.
        """
        for array in arrays:
            if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or array.shape[1] != array.shape[2]:
                raise DataError(f"expected pictures [n, S, S, 3] uint8, got {list(array.shape)} {array.dtype}")
        if not sum(len(array) for array in arrays):
            raise DataError("expected one picture or more, got none")
        self._arrays = tuple(arrays)
        self._ends = np.cumsum([len(array) for array in arrays])
        self.keys: Sequence[str] = _ArrayKeys(self._ends)
        self.digest = digest_pictures(arrays)
        self.problems: Sequence[tuple[str, str]] = ()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, number: int) -> bytes:
        """Return a picture as a PNG file."""
        stream = io.BytesIO()
        Image.fromarray(self._pixels(number)).save(stream, format="PNG")
        return stream.getvalue()

    def decode(self, number: int, spec: Preprocessing) -> NDArray[np.uint8]:
        """Return a picture: [S, S, 3].

        Raises:
            DataError: its side is not the one that the network sees.
        """
        pixels = self._pixels(number)
        if pixels.shape[0] != spec.size:
            raise DataError(f"expected pictures of side {spec.size}, as the network sees them, got {pixels.shape[0]}")
        return pixels

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        place = range(len(self))[number]
        which = int(np.searchsorted(self._ends, place, side="right"))
        return np.asarray(self._arrays[which][place - (int(self._ends[which - 1]) if which else 0)])


def open_pictures(specs: Sequence[str | Path], *, index_folder: Path | None = None) -> Pictures:
    """Open pictures by where they are.

    Args:
        specs: each a folder (searched recursively; captions in a .txt of the same name, a record in a .json), a .zip
            or a WebDataset .tar with the same inside, or a .jsonl list ({"image": path relative to the list,
            "caption": str or "captions": [str, ...]}). "shards/{000..012}.tar" and "shards/*.tar" name several.
        index_folder: keeps what the archives' headers say, so that the next run need not read them again.

    Raises:
        DataError: nothing there, or nothing usable; says what was looked for and what was found.
    """
    paths = [path for spec in specs for path in expand_spec(spec)]
    if not paths:
        raise DataError(f"no pictures were named: pass {KINDS}")
    files = ArchiveFiles()
    pictures = Pictures([_open_origin(path, files, index_folder) for path in paths])
    for key, reason in pictures.problems:
        _log.warning("%s: %s", key, reason)
    return pictures


def _open_origin(path: Path, files: ArchiveFiles, index_folder: Path | None) -> Origin:
    if path.is_dir():
        return FolderOrigin(path)
    if not path.is_file():
        raise DataError(f"no pictures at {path}: expected {KINDS}")
    if _COMPRESSED.search(path.name):
        raise DataError(f"{path} is compressed, so pictures cannot be picked out of it: unpack it to a plain .tar")
    suffix = path.suffix.lower()
    if suffix in ARCHIVE_SUFFIXES:
        return ArchiveOrigin(path, files, index_folder)
    if suffix in LIST_SUFFIXES:
        return ListOrigin(path, files)
    raise DataError(f"{path} is no place that pictures come from: expected {KINDS}")


def _captions_of(record: dict[str, Any]) -> list[str]:
    captions = record.get("captions")
    found = [record.get("caption"), *(captions if isinstance(captions, list) else [captions])]
    return [line for caption in found if isinstance(caption, str) for line in [" ".join(caption.split())]]


def _digest_origins(origins: Sequence[Origin]) -> str:
    sha256 = hashlib.sha256()
    for origin in origins:
        block, ends = origin.names.arrays()
        sha256.update(f"{origin.label if len(origins) > 1 else ''}:{len(ends)}:".encode("utf-8", "surrogateescape"))
        for array in (block, ends, origin.sizes):
            sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


class _Keys(LazyStrings):
    """The names of all pictures; behind their place's label if there are several places, and "#2" where seen before."""

    def __init__(self, origins: Sequence[Origin], ends: NDArray[np.int64]) -> None:
        self._names = [origin.names for origin in origins]
        self._prefixes = [f"{origin.label}/" for origin in origins] if len(origins) > 1 else [""]
        self._ends = ends
        self._again: dict[int, int] = {}
        self._again = self._find_repeated()
        if self._again:
            first = self[min(self._again)]
            _log.warning("%d pictures have the key of another one, such as %s: told apart so", len(self._again), first)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _get(self, number: int) -> str:
        which = int(np.searchsorted(self._ends, number, side="right"))
        name = self._names[which][number - (int(self._ends[which - 1]) if which else 0)]
        times = self._again.get(number)
        return f"{self._prefixes[which]}{name}" + (f"#{times}" if times else "")

    def _find_repeated(self) -> dict[int, int]:
        """Return number -> which time it is that its key comes, for the second time and on."""
        named = zip(self._prefixes, self._names, strict=True)
        hashes = np.fromiter((hash(prefix + name) for prefix, names in named for name in names), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        suspects = sorted({int(order[i + d]) for i in same for d in (0, 1)})
        times: dict[str, int] = {}
        again: dict[int, int] = {}
        for number in suspects:
            key = self[number]
            times[key] = times.get(key, 0) + 1
            if times[key] > 1:
                again[number] = times[key]
        return again


class _ArrayKeys(LazyStrings):
    """ "0:17" for picture 17 of the first array."""

    def __init__(self, ends: NDArray[np.int64]) -> None:
        self._ends = ends

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _get(self, number: int) -> str:
        which = int(np.searchsorted(self._ends, number, side="right"))
        return f"{which}:{number - (int(self._ends[which - 1]) if which else 0)}"
