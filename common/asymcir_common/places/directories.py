"""The directory of a zip or a tar: the names of its members, and where each lies.

Read by `zipfile` and `tarfile`; what they make of a member, 580 bytes of objects, is not kept.

Notation: m regular members of an archive.
"""

import stat
import struct
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import PlaceError
from asymcir_common.places.file_reading import ENCRYPTED, MEMBER, TAR
from asymcir_common.places.rules import (
    PICTURE_SUFFIXES,
    Rejected,
    is_compressed_tar,
    is_hidden,
    leaves_its_place,
    suffix_of,
)

_PACKED_MEMBER = struct.Struct("<qqqIB")  # MEMBER
_ENCRYPTED_FLAG = 0x1
_UNIX = 3  # the system that made an entry, so that its attributes hold a file mode
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")

_UNREADABLE = (
    OSError, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip


@dataclass(slots=True)
class Directory:
    """What an archive holds.

    Attributes:
        names: [m], in the archive's order, without a leading `./`.
        rejected: pictures that cannot be read, and damage of the archive itself.
    """

    names: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    _packed: bytearray = field(default_factory=bytearray)

    @property
    def members(self) -> NDArray[np.void]:
        """[m], of MEMBER."""
        return np.frombuffer(bytes(self._packed), MEMBER)

    def add(self, name: str, *, regular: bool, offset: int, stored: int, size: int, checksum: int, method: int) -> None:
        """Append one member, or the reason why it cannot be one."""
        while name.startswith("./"):
            name = name[2:]
        reason = None
        if leaves_its_place(name):
            reason = "its name leads out of the archive: pack it again with relative names without .."
        elif not regular:
            reason = "a link or another special member: pack the file itself"
        if reason is None:
            self.names.append(name)
            self._packed += _PACKED_MEMBER.pack(offset, stored, size, checksum, method)
        elif suffix_of(name) in PICTURE_SUFFIXES and (leaves_its_place(name) or not is_hidden(name)):
            self.rejected.append(Rejected(id=name, path=name, reason=reason))


def read_directory(path: Path) -> Directory:
    """Read the directory of a .zip or of an uncompressed .tar, by its suffix.

    What a million names take is said in `places`.

    Raises:
        PlaceError: it cannot be read as an archive of its suffix.
    """
    if is_compressed_tar(path.name):
        raise PlaceError(f"{path} is compressed, so pictures cannot be picked out of it: unpack it to a plain .tar")
    try:
        return _read_zip(path) if path.suffix.lower() == ".zip" else _read_tar(path)
    except _UNREADABLE as exc:
        if isinstance(exc, zipfile.BadZipFile) and _starts_as_zip(path):
            exc = zipfile.BadZipFile("it is a zip that ends early: its directory, which stands at the end, is cut off")
        raise PlaceError(
            f"cannot read the archive {path}: {exc}; expected a complete zip or an uncompressed tar"
        ) from exc


def _read_zip(path: Path) -> Directory:
    directory = Directory()
    with zipfile.ZipFile(path) as archive:
        info: zipfile.ZipInfo | None = None
        for info in archive.infolist():
            if info.is_dir():
                continue
            directory.add(
                info.filename,
                regular=not (info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16)),
                offset=info.header_offset,
                stored=info.compress_size,
                size=info.file_size,
                checksum=info.CRC,
                method=ENCRYPTED if info.flag_bits & _ENCRYPTED_FLAG else min(info.compress_type, ENCRYPTED - 1),
            )
    # The names lie between the objects of zipfile, and would keep all of that memory from being given back.
    block, directory.names = "\0".join(directory.names), []  # no name has a zero character
    del archive, info
    directory.names = block.split("\0") if block else []
    return directory


def _read_tar(path: Path) -> Directory:
    """Read a tar's headers; where it is damaged behind the first, what was read stays."""
    directory = Directory()
    archive_bytes = path.stat().st_size
    with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        cause = ""
        try:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header otherwise
                if not info.isdir():
                    directory.add(
                        info.name,
                        regular=info.isreg() and not info.issparse(),
                        offset=info.offset_data,
                        stored=info.size,
                        size=info.size,
                        checksum=0,
                        method=TAR,
                    )
        except tarfile.ReadError as exc:
            cause = f" ({exc})"
        # tarfile takes a damaged header for the end; what really ends a tar is a block of zeros, or the file's end.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.offset > archive_bytes:
            place = min(tar.offset, archive_bytes)
            reason = f"damaged or cut off at byte {place} of {archive_bytes}; what lies behind it is not read{cause}"
            directory.rejected.append(Rejected(id=path.name, path="", reason=reason))
    return directory


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) in _ZIP_STARTS
