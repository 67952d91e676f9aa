"""Zips and tars: the headers are read once, after that any member is one read at a known place.

There is no shared file position, so threads, forked and spawned workers may read one archive at once.
"""

import contextlib
import hashlib
import logging
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from asymcir_common import ImageError

from asymcir_training.errors import DataError
from asymcir_training.pictures.archive_headers import (
    DEFLATED,
    ENCRYPTED,
    LOCAL_HEADER,
    LOCAL_SIGNATURE,
    PICTURE_SUFFIXES,
    STORED,
    TAR,
    ArchiveIndex,
    HeaderTable,
    describe_suffixes,
    scan_tar,
    scan_zip,
)
from asymcir_training.pictures.packed_strings import Strings

MAX_FILE_BYTES = 512 * 2**20
"""Larger files are not read; also what bounds a zip member that unpacks to gigabytes."""

_OPEN_FILES = 128  # of one process; shards by the thousand must not use up its file handles
_INDEX_VERSION = 1

_log = logging.getLogger(__name__)


def read_index(path: Path, store: Path | None = None) -> ArchiveIndex:
    """Read the headers of a .zip or an uncompressed .tar.

    Args:
        path: the archive.
        store: a folder that keeps the index, so that the next run need not read the headers again; an archive whose
            size or time of change is another is read anew.

    Raises:
        DataError: it cannot be read as an archive of its suffix, or has no picture.
    """
    try:
        found = path.stat()
        kept = None if store is None else _index_file(store, path, found)
        if kept is not None and (index := _load_index(kept)) is not None:
            return index
        with path.open("rb") as stream:
            table = HeaderTable(found.st_size)
            if path.suffix.lower() == ".zip":
                scan_zip(stream, table)
            else:
                scan_tar(stream, table)
    except (OSError, struct.error, tarfile.TarError, zipfile.BadZipFile, ValueError) as exc:
        raise DataError(
            f"cannot read the archive {path}: {exc}; expected a complete zip or an uncompressed tar"
        ) from exc
    index = table.build()
    if not len(index.names):
        raise DataError(
            f"no picture in {path}: looked for members that end in {', '.join(sorted(PICTURE_SUFFIXES))}, found "
            f"{describe_suffixes(table.suffixes)}" + "".join(f"; {reason}" for _, reason in index.problems[:1])
        )
    if kept is not None:
        _save_index(kept, index)
    return index


class ArchiveFiles:
    """Reads members of archives; one for all of a process, pickles without its open files."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": {}}

    def read(self, path: Path, member: np.void, name: str) -> bytes:
        """Return one member's bytes, unpacked.

        Raises:
            ImageError: it is damaged, encrypted, too large, or packed in a way that is not read here.
        """
        method, size, stored = int(member["method"]), int(member["size"]), int(member["stored"])
        if method == ENCRYPTED:
            raise ImageError(f"{name} is encrypted: pack it again without a password")
        if max(size, stored) > MAX_FILE_BYTES:
            raise ImageError(f"{name} is above {MAX_FILE_BYTES // 2**20} MiB: scale it down first")
        try:
            stream, offset = self._file(path), int(member["offset"])
            if method == TAR:
                return _read_at(stream, offset, stored, name)
            header = _read_at(stream, offset, LOCAL_HEADER.size, name)
            signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
            if signature != LOCAL_SIGNATURE:
                raise ImageError(f"{name} has a damaged header in {path.name}")
            data = _read_at(stream, offset + LOCAL_HEADER.size + name_length + extra_length, stored, name)
        except OSError as exc:
            raise ImageError(f"cannot read {name}: {exc.strerror or exc}") from exc
        return _unpack(data, method, size, int(member["checksum"]), name)

    def read_part(self, path: Path, offset: int, size: int, name: str) -> bytes:
        """Return bytes of a file; ImageError when they are not there."""
        try:
            return _read_at(self._file(path), offset, size, name)
        except OSError as exc:
            raise ImageError(f"cannot read {name}: {exc.strerror or exc}") from exc

    def _file(self, path: Path) -> BinaryIO:
        stream = self._open.get(path)
        if stream is None:
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()  # closes each file as soon as no thread reads it any more
            stream = self._open[path] = path.open("rb", buffering=0)
        return stream


def _read_at(stream: BinaryIO, offset: int, size: int, name: str) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(stream.fileno(), size, offset)
        if not part:
            raise ImageError(f"{name} is cut off: its archive ends {size} bytes too early")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)


def _unpack(data: bytes, method: int, size: int, checksum: int, name: str) -> bytes:
    if method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as exc:
            raise ImageError(f"cannot unpack {name}: {exc}") from exc
    elif method != STORED:
        raise ImageError(f"{name} is packed by zip method {method}: expected stored or deflated, pack it again")
    if len(data) != size or zlib.crc32(data) != checksum:
        raise ImageError(f"cannot unpack {name}: size or checksum are not those of the zip's directory")
    return data


def _index_file(store: Path, path: Path, found: os.stat_result) -> Path:
    identity = f"{_INDEX_VERSION}:{path.resolve()}:{found.st_size}:{found.st_mtime_ns}"
    return store / f"{path.name}-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}.npz"


def _load_index(path: Path) -> ArchiveIndex | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            problems = [text.split("\0", 1) for text in Strings(arrays["problems"], arrays["problem_ends"])]
            return ArchiveIndex(
                names=Strings(arrays["names"], arrays["name_ends"]),
                members=arrays["members"],
                pictures=arrays["pictures"],
                captions=arrays["captions"],
                records=arrays["records"],
                problems=tuple((name, reason) for name, reason in problems),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as exc:
        _log.warning("the index %s is damaged and made anew: %s", path, exc)
        return None


def _save_index(path: Path, index: ArchiveIndex) -> None:
    names, name_ends = index.names.arrays()
    problems, problem_ends = Strings.of([f"{name}\0{reason}" for name, reason in index.problems]).arrays()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                names=names,
                name_ends=name_ends,
                members=index.members,
                pictures=index.pictures,
                captions=index.captions,
                records=index.records,
                problems=problems,
                problem_ends=problem_ends,
            )
        temporary.replace(path)
    except OSError as exc:
        _log.warning("the index %s cannot be kept: %s", path, exc)
        with contextlib.suppress(OSError):
            temporary.unlink()
