"""Where gallery pictures come from: a folder, a zip, or a JSON-lines list with metadata.

A source yields one entry after another, in a stable order, without reading a picture; `Entry.read` does, in the worker
that decodes it. What is known to be unusable before that (a broken line, a name that is no text) comes as `Rejected`.
"""

import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from asymcir_common import ImageError
from google.protobuf.message import DecodeError, EncodeError
from google.protobuf.struct_pb2 import Struct

from asymcir_server.errors import GalleryBuildError

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Files of a folder or zip that are taken for pictures; a list may name any file."""

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Larger files are quarantined unread; also what bounds a zip entry that unpacks to gigabytes."""

MAX_ID_BYTES = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One picture to be.

    Attributes:
        id: unique in the gallery.
        path: as the quarantine names it.
        read: returns the file's bytes; raises ImageError when it cannot.
        metadata: what search answers carry on request, JSON values.
    """

    id: str
    path: str
    read: Callable[[], bytes]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """One entry that cannot be a picture, and why."""

    id: str
    path: str
    reason: str


class Source(Protocol):
    """A finite, repeatable run of entries."""

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield the entries in a stable order."""

    def __len__(self) -> int:
        """Return how many there are, for the progress line."""


def open_source(images: Path) -> Source:
    """Open a folder (searched recursively), a zip, or a JSON-lines list.

    Raises:
        GalleryBuildError: nothing is there, or it is none of the three.
    """
    if images.is_dir():
        return FolderSource(images)
    if not images.is_file():
        raise GalleryBuildError(f"no pictures at {images}: expected a folder, a zip or a .jsonl list")
    if zipfile.is_zipfile(images):
        return ZipSource(images)
    if images.suffix.lower() in {".jsonl", ".ndjson"}:
        return ListSource(images)
    raise GalleryBuildError(f"{images} is neither a folder nor a zip nor a .jsonl list: pass one of these")


class FolderSource:
    """Every file with a picture's suffix below a folder; its id is its relative POSIX path."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder."""
        self._folder = folder

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield by sorted path; hidden ones are left out, links to folders are not followed."""
        for path in self._walk():
            name = path.relative_to(self._folder).as_posix()
            problem = _check_id(name)
            if problem:
                yield Rejected(id=name, path=name, reason=problem)
            else:
                yield Entry(id=name, path=name, read=lambda path=path, name=name: _read_file(path, name))  # type: ignore[misc]

    def __len__(self) -> int:
        """Count the files that iteration yields."""
        return sum(1 for _ in self._walk())

    def _walk(self) -> Iterator[Path]:
        for root, folders, files in os.walk(self._folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if _is_picture_name(name):
                    yield Path(root, name)


class ZipSource:
    """Every picture in a zip; its id is its name in the zip."""

    def __init__(self, path: Path) -> None:
        """Read the zip's directory.

        Raises:
            GalleryBuildError: it cannot be read.
        """
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as exc:
            raise GalleryBuildError(f"cannot read the zip {path}: {exc}") from exc
        # Sorted by name; the sort is stable, so of two entries of one name the first in the zip is the one kept.
        self._infos = sorted((info for info in self._zip.infolist() if self._is_wanted(info)), key=lambda i: i.filename)

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield by sorted name."""
        for info in self._infos:
            problem = _check_id(info.filename)
            if problem:
                yield Rejected(id=info.filename, path=info.filename, reason=problem)
            else:
                yield Entry(id=info.filename, path=info.filename, read=lambda info=info: self._read(info))  # type: ignore[misc]

    def __len__(self) -> int:
        """Count the entries that iteration yields."""
        return len(self._infos)

    @staticmethod
    def _is_wanted(info: zipfile.ZipInfo) -> bool:
        parts = info.filename.split("/")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts[:-1])
        return not info.is_dir() and not hidden and _is_picture_name(parts[-1])

    def _read(self, info: zipfile.ZipInfo) -> bytes:
        try:
            with self._zip.open(info) as stream:
                return _read_bounded(stream.read, info.filename)
        except ImageError:
            raise
        except Exception as exc:  # a bad CRC, a password, a compression method, broken deflate data: each its own type
            raise ImageError(f"cannot unpack {info.filename}: {exc}") from exc


class ListSource:
    """A JSON-lines list: `{"path": ..., "id": ..., anything else: metadata}`, paths relative to the list's folder.

    Without an `id` the path is the id. A broken line is rejected by itself and the list goes on.
    """

    def __init__(self, path: Path) -> None:
        """Remember the list.

        Raises:
            GalleryBuildError: it cannot be read.
        """
        self._path = path
        try:
            with path.open("rb"):
                pass
        except OSError as exc:
            raise GalleryBuildError(f"cannot read the list {path}: {exc.strerror}") from exc

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield line by line; blank lines are left out."""
        with self._path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield self._read_line(line, f"{self._path.name}:{number}")

    def __len__(self) -> int:
        """Count the lines that iteration yields."""
        with self._path.open("rb") as stream:
            return sum(1 for line in stream if line.strip())

    def _read_line(self, line: bytes, where: str) -> Entry | Rejected:
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as exc:
            return Rejected(id=where, path="", reason=f"line is not JSON: {exc}")
        if not isinstance(record, dict) or not isinstance(record.get("path"), str) or not record["path"]:
            return Rejected(id=where, path="", reason='expected a line like {"path": "pictures/1.png", ...}')
        name = record["path"]
        identity = record.get("id", name)
        if isinstance(identity, int) and not isinstance(identity, bool):
            identity = str(identity)
        if not isinstance(identity, str):
            return Rejected(id=where, path=name, reason=f"expected a text or a whole number as id, got {identity!r}")
        metadata = {key: value for key, value in record.items() if key not in {"path", "id"}}
        problem = _check_id(identity) or _check_id(name) or _check_metadata(metadata)
        if problem:
            return Rejected(id=identity, path=name, reason=problem)
        path = self._path.parent / name
        return Entry(id=identity, path=name, read=lambda: _read_file(path, name), metadata=metadata)


def _is_picture_name(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _check_id(identity: str) -> str | None:
    try:
        size_bytes = len(identity.encode("utf-8"))
    except UnicodeEncodeError:
        return "the id or path is not UTF-8 text: rename the file"
    if size_bytes == 0 or size_bytes > MAX_ID_BYTES:
        return f"expected an id of 1 to {MAX_ID_BYTES} bytes, got {size_bytes}"
    return None


def _check_metadata(metadata: Mapping[str, Any]) -> str | None:
    """Send metadata through the message that will carry it, so that no search answer can fail on it later."""
    message = Struct()
    try:
        message.update(metadata)
        Struct.FromString(message.SerializeToString())
        json.dumps(metadata, allow_nan=False)
    except (ValueError, TypeError, OverflowError, RecursionError, DecodeError, EncodeError) as exc:
        return f"the metadata cannot be sent in an answer: {exc}"
    return None


def _read_file(path: Path, name: str) -> bytes:
    try:
        # Opening a named pipe would wait for ever, so look before.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{name} is not a regular file")
        with path.open("rb") as stream:
            return _read_bounded(stream.read, name)
    except (OSError, ValueError) as exc:
        raise ImageError(f"cannot read {name}: {getattr(exc, 'strerror', None) or exc}") from exc


def _read_bounded(read: Callable[[int], bytes], name: str) -> bytes:
    data = read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name} is above {MAX_FILE_BYTES // 2**20} MiB: scale it down first")
    return data
