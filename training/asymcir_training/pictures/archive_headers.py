"""What the headers of a zip or a tar say, as a table.

The standard library keeps an object of up to a kilobyte for each member; a table here is a few arrays, so that an
archive of a million members fits every worker.

Notation: n pictures of an archive, m members (pictures and what stands beside them).
"""

import stat
import struct
import tarfile
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from asymcir_training.pictures.packed_strings import Strings, StringsBuilder

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""Files of a folder or an archive that are taken for pictures; a list may name any file."""

CAPTION_SUFFIX, RECORD_SUFFIX = ".txt", ".json"
"""Files of a picture's own name that stand beside it."""

STORED, DEFLATED, ENCRYPTED, TAR = 0, 8, 254, 255
"""How a member is packed; the first two are zip's own numbers."""

LOCAL_SIGNATURE, LOCAL_HEADER = b"PK\x03\x04", struct.Struct("<4s22x2H")
"""What stands before a zip member's data; then come name and extra field, of the two lengths."""

# Zip's directory (APPNOTE 4.3.12), its end (4.3.16) and the two records of a zip of more than 4 GiB (4.3.14, 4.3.15):
# of each the signature and the fields that are used.
_ENTRY_SIGNATURE, _ENTRY = b"PK\x01\x02", struct.Struct("<4sxB2x2H4x3L3H4x2L")
_END_SIGNATURE, _END = b"PK\x05\x06", struct.Struct("<4s6xH2L2x")
_LOCATOR_SIGNATURE, _LOCATOR = b"PK\x06\x07", struct.Struct("<4s4xQ4x")
_END64_SIGNATURE, _END64 = b"PK\x06\x06", struct.Struct("<4s28x3Q")
_LONGEST_COMMENT = 0xFFFF
_UNIX = 3  # the system that made an entry, so that its attributes hold a file mode
_UTF8_NAME, _IS_ENCRYPTED = 0x800, 0x1  # flags
_IN_EXTRA_FIELD = 0xFFFFFFFF
_ZIP64_FIELD = 1

_MEMBER = np.dtype([("offset", "<i8"), ("stored", "<i8"), ("size", "<i8"), ("checksum", "<u4"), ("method", "u1")])
_PACKED_MEMBER = "<qqqIB"  # the same


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveIndex:
    """What an archive holds.

    Attributes:
        names: [n], the pictures, in the archive's order.
        members: [m], structured: where each member lies, how long it is, how it is packed.
        pictures, captions, records: [n], the row in `members` of each picture, of the .txt and of the .json of its
            name; -1 for none.
        problems: (name, reason) of what cannot be a picture, known from the headers.
    """

    names: Strings
    members: NDArray[np.void]
    pictures: NDArray[np.int64]
    captions: NDArray[np.int64]
    records: NDArray[np.int64]
    problems: tuple[tuple[str, str], ...] = ()

    def sizes(self) -> NDArray[np.int64]:
        """Return the unpacked size of each picture: [n], bytes."""
        return self.members["size"][self.pictures].astype(np.int64)


def is_hidden(name: str) -> bool:
    """Whether a path has a part that starts with a dot, or lies where macOS keeps its own files."""
    # As text: pathlib interns every part of every name, which tells with a million of them.
    return "/." in f"/{name}" or "/__MACOSX/" in f"/{name}/"


def describe_suffixes(suffixes: Mapping[str, int]) -> str:
    """Say what was found where no picture was: "12 .txt, 3 .tar"."""
    most = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:5]
    return ", ".join(f"{count} {suffix}" for suffix, count in most) or "nothing"


@dataclass(slots=True)
class _Column:
    """Places of members of one kind, and the hash of each name without its suffix."""

    rows: array = field(default_factory=lambda: array("q"))  # type: ignore[type-arg]
    stems: array = field(default_factory=lambda: array("q"))  # type: ignore[type-arg]


class HeaderTable:
    """Collects an `ArchiveIndex` member by member."""

    def __init__(self, archive_bytes: int) -> None:
        self.archive_bytes = archive_bytes
        self.problems: list[tuple[str, str]] = []
        self._packed = bytearray()
        self._names = StringsBuilder()
        self._kinds = {"pictures": _Column(), CAPTION_SUFFIX: _Column(), RECORD_SUFFIX: _Column()}
        self._count = 0
        self.suffixes: Counter[str] = Counter()

    def add(
        self, name: str, *, offset: int, stored: int, size: int, checksum: int, method: int, regular: bool = True
    ) -> None:
        """Append one member, if it is a picture or may stand beside one."""
        stem, dot, suffix = name.rpartition(".")
        suffix = (dot + suffix).lower()
        self.suffixes[suffix or "(none)"] += 1
        kind = "pictures" if suffix in PICTURE_SUFFIXES else suffix
        if kind not in self._kinds or is_hidden(name):
            return
        if not regular:
            self.problems.append((name, "a link or another special member: pack the file itself"))
            return
        self._packed += struct.pack(_PACKED_MEMBER, offset, stored, size, checksum, method)
        self._kinds[kind].rows.append(self._count)
        self._kinds[kind].stems.append(hash(stem))  # 64 bit, of this process only, as this table is
        self._count += 1
        if kind == "pictures":
            self._names.add(name)

    def build(self) -> ArchiveIndex:
        """Find what stands beside each."""
        columns = {
            kind: (np.array(column.rows, np.int64), np.array(column.stems, np.int64))
            for kind, column in self._kinds.items()
        }
        rows, stems = columns["pictures"]
        return ArchiveIndex(
            names=self._names.build(),
            members=np.frombuffer(self._packed, _MEMBER),
            pictures=rows,
            captions=_match(stems, *columns[CAPTION_SUFFIX]),
            records=_match(stems, *columns[RECORD_SUFFIX]),
            problems=tuple(self.problems),
        )


def _match(wanted: NDArray[np.int64], rows: NDArray[np.int64], stems: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each wanted stem the first row of that stem, or -1."""
    if not len(stems):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(stems, kind="stable")
    place = np.minimum(np.searchsorted(stems, wanted, sorter=order), len(stems) - 1)
    return np.where(stems[order[place]] == wanted, rows[order[place]], -1)


def scan_tar(stream: BinaryIO, table: HeaderTable) -> None:
    """Add the members of an uncompressed tar; where it is damaged behind the first, what was read stays.

    Raises:
        tarfile.TarError: it is no tar.
    """
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        end = "the end of the archive"
        try:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header otherwise
                if not info.isdir():
                    table.add(
                        info.name.removeprefix("./"),  # which `tar cf x.tar .` puts before every name
                        offset=info.offset_data,
                        stored=info.size,
                        size=info.size,
                        checksum=0,
                        method=TAR,
                        regular=info.isreg() and not info.issparse(),
                    )
        except tarfile.ReadError as exc:
            end = str(exc)
        # tarfile takes a damaged header for the end; what really ends a tar is a block of zeros, or the file's end.
        stream.seek(tar.offset)
        block = stream.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0") or tar.offset > table.archive_bytes:
            place = min(tar.offset, table.archive_bytes)
            reason = f"damaged or cut off at byte {place} of {table.archive_bytes}; what lies behind it is not read"
            table.problems.append(("", reason if end.startswith("the end") else f"{reason} ({end})"))


def scan_zip(stream: BinaryIO, table: HeaderTable) -> None:
    """Add the members that a zip's directory names.

    Raises:
        ValueError, struct.error: it has no directory, or a damaged one.
    """
    start, count = _find_directory(stream, table.archive_bytes)
    stream.seek(start)
    for _ in range(count):
        fields = _ENTRY.unpack(stream.read(_ENTRY.size))
        signature, system, flags, method, checksum, stored, size, *lengths, attributes, offset = fields
        if signature != _ENTRY_SIGNATURE:
            raise ValueError("its directory is damaged")
        raw, extra, _ = (stream.read(length) for length in lengths)  # the last is the comment
        size, stored, offset = _read_zip64(extra, size, stored, offset)
        name = raw.decode("utf-8" if flags & _UTF8_NAME else "cp437", "replace")
        if not name.endswith("/"):
            table.add(
                name,
                offset=offset,
                stored=stored,
                size=size,
                checksum=checksum,
                method=ENCRYPTED if flags & _IS_ENCRYPTED else min(method, ENCRYPTED - 1),
                regular=not (system == _UNIX and stat.S_ISLNK(attributes >> 16)),
            )


def _find_directory(stream: BinaryIO, archive_bytes: int) -> tuple[int, int]:
    """Return where a zip's directory starts and how many members it has."""
    tail_bytes = min(archive_bytes, _END.size + _LONGEST_COMMENT)
    stream.seek(archive_bytes - tail_bytes)
    tail = stream.read(tail_bytes)
    place = tail.rfind(_END_SIGNATURE)
    if place < 0:
        raise ValueError("it has no directory at its end, as one that was cut off")
    _, count, size, offset = _END.unpack_from(tail, place)
    end = archive_bytes - tail_bytes + place
    if end >= _LOCATOR.size:
        stream.seek(end - _LOCATOR.size)
        signature, end64 = _LOCATOR.unpack(stream.read(_LOCATOR.size))
        if signature == _LOCATOR_SIGNATURE:
            stream.seek(end64)
            signature, count, _, offset = _END64.unpack(stream.read(_END64.size))
            if signature != _END64_SIGNATURE:
                raise ValueError("the record of its zip64 directory is damaged")
            return offset, count
    if end - size != offset:
        raise ValueError("its directory is not where its end says: something stands before the zip, or is missing")
    return offset, count


def _read_zip64(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Replace those of the three that do not fit 32 bits by the zip64 extra field's."""
    values = [size, stored, offset]
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == _ZIP64_FIELD:
            long = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            values = [next(long, value) if value == _IN_EXTRA_FIELD else value for value in values]
        place += 4 + length
    return values[0], values[1], values[2]
