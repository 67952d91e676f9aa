"""Reading files and parts of files, with a bound on their size.

There is no shared file position, so threads, forked and spawned workers may read one archive at once. `zipfile` reads
a member only through an object that holds the whole directory, 580 bytes a member in every process; a member whose
place is known is one read and one call of zlib.
"""

import os
import stat
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asymcir_common.errors import ImageError
from asymcir_common.files import MAX_FILE_BYTES

MISSING = -1
"""The size of a file that is not there, or is no regular file."""

MEMBER = np.dtype([("offset", "<i8"), ("stored", "<i8"), ("size", "<i8"), ("checksum", "<u4"), ("method", "u1")])
"""A member of an archive: where it lies (a zip's: its local header), bytes packed and unpacked, CRC-32, how packed."""

STORED, DEFLATED, ENCRYPTED, TAR = 0, 8, 254, 255
"""How a member is packed; the first two are zip's own numbers."""

_LOCAL_SIGNATURE, _LOCAL_HEADER = b"PK\x03\x04", struct.Struct("<4s22x2H")
"""What stands before a zip member's data; then come name and extra field, of the two lengths."""

_OPEN_FILES = 128  # of one process; shards by the thousand must not use up its file handles


class OpenFiles:
    """Files of which parts are read; one for all of a process, pickles without its open files."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": {}}

    def read_part(self, path: Path, offset: int, size: int, name: str) -> bytes:
        """Return bytes of a file; ImageError when they are not there."""
        parts = []
        try:
            stream = self._file(path)
            while size > 0:
                part = os.pread(stream.fileno(), size, offset)
                if not part:
                    raise ImageError(f"{name} is cut off: {path.name} ends {size} bytes too early")
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError as exc:
            raise ImageError(f"cannot read {name}: {exc.strerror or exc}") from exc
        return b"".join(parts)

    def read_member(self, path: Path, member: np.void, name: str) -> bytes:
        """Return the bytes of an archive's member (of MEMBER), unpacked.

        Raises:
            ImageError: it is damaged, encrypted, too large, or packed in a way that is not read here.
        """
        method, size, stored, offset = (int(member[key]) for key in ("method", "size", "stored", "offset"))
        if method == ENCRYPTED:
            raise ImageError(f"{name} is encrypted: pack it again without a password")
        if max(size, stored) > MAX_FILE_BYTES:
            raise _too_large(name)
        if method == TAR:
            return self.read_part(path, offset, stored, name)
        header = self.read_part(path, offset, _LOCAL_HEADER.size, name)
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        if signature != _LOCAL_SIGNATURE:
            raise ImageError(f"{name} has a damaged header in {path.name}")
        data = self.read_part(path, offset + _LOCAL_HEADER.size + name_bytes + extra_bytes, stored, name)
        return _unpack(data, method, size, int(member["checksum"]), name)

    def _file(self, path: Path) -> BinaryIO:
        stream = self._open.get(path)
        if stream is None:
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()  # closes each file as soon as no thread reads it any more
            stream = self._open[path] = path.open("rb", buffering=0)
        return stream


def size_of(path: Path) -> int:
    """Return a file's size in bytes, or MISSING."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return MISSING
    return found.st_size if stat.S_ISREG(found.st_mode) else MISSING


def stamp_of(path: Path) -> tuple[str, int, int]:
    """Return a file's absolute path, its size in bytes and its time of change in ns; MISSING and 0 where it is none."""
    place = os.path.abspath(path)  # noqa: PTH100 - links are not resolved: that would read every folder
    try:
        found = path.stat()
    except (OSError, ValueError):
        return place, MISSING, 0
    return (place, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (place, MISSING, 0)


def place_of_member(archive: str, name: str, member: np.void, *, repeated: bool) -> str:
    """Return where a member of an archive lies: "archive/name".

    Args:
        archive: absolute path.
        name: of the member.
        member: of MEMBER.
        repeated: whether another member has that name; then the member's offset stands behind a zero character, which
            no name has.
    """
    return f"{archive}/{name}\0{int(member['offset'])}" if repeated else f"{archive}/{name}"


def read_file(path: Path, name: str) -> bytes:
    """Return a file's bytes.

    Raises:
        ImageError: it cannot be read, is no regular file, or is above MAX_FILE_BYTES.
    """
    try:
        # Opening a named pipe would wait for ever, so look before.
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"{name} is not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise _too_large(name)
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise ImageError(f"cannot read {name}: {getattr(exc, 'strerror', None) or exc}") from exc
    if len(data) > MAX_FILE_BYTES:  # it grew
        raise _too_large(name)
    return data


def read_file_beside(path: Path) -> bytes | None:
    """Return the bytes of a file that may stand beside a picture, None for no regular file; ImageError as above."""
    return None if size_of(path) == MISSING else read_file(path, path.name)


def _unpack(data: bytes, method: int, size: int, checksum: int, name: str) -> bytes:
    if method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as exc:
            raise ImageError(f"cannot unpack {name}: {exc}") from exc
    elif method != STORED:
        raise ImageError(f"{name} is packed by zip method {method}: expected stored or deflated, pack it again")
    if len(data) != size or zlib.crc32(data) != checksum:
        raise ImageError(f"cannot unpack {name}: Bad CRC-32, or another size than the zip's directory gives")
    return data


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name} is above {MAX_FILE_BYTES // 2**20} MiB: scale it down first")
