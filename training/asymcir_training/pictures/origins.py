"""The three kinds of places that pictures come from: a folder, an archive, a JSON-lines list.

Each knows its pictures by name and size, in a fixed order, and opens files only when asked for a picture or its texts.

Notation: n pictures of the source.
"""

import json
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from asymcir_common import ImageError
from numpy.typing import NDArray

from asymcir_training.errors import DataError
from asymcir_training.pictures.archive_headers import (
    CAPTION_SUFFIX,
    PICTURE_SUFFIXES,
    RECORD_SUFFIX,
    describe_suffixes,
    is_hidden,
)
from asymcir_training.pictures.archives import MAX_FILE_BYTES, ArchiveFiles, read_index
from asymcir_training.pictures.packed_strings import Strings, StringsBuilder

LIST_SUFFIXES = frozenset({".jsonl", ".ndjson"})
ARCHIVE_SUFFIXES = frozenset({".tar", ".zip"})

_MISSING = -1  # the size of a file that is not there, or is no regular file


class Origin(Protocol):
    """One place that pictures come from.

    Attributes:
        label: tells its pictures apart from those of other places.
        names: [n].
        sizes: [n], bytes as the place states them.
        problems: (name, reason) of what cannot be a picture, known without reading one.
    """

    label: str
    names: Strings
    sizes: NDArray[np.int64]
    problems: tuple[tuple[str, str], ...]

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""

    def read_texts(self, row: int) -> tuple[bytes | None, list[bytes]]:
        """Return the caption file of a picture, None for none, and its records as JSON."""


class FolderOrigin:
    """Every file with a picture's suffix below a folder, by relative POSIX path.

    Hidden files and folders are left out. Links are followed, and each folder is read once, so a loop ends.
    """

    def __init__(self, folder: Path) -> None:
        """Walk the folder.

        Raises:
            DataError: no picture there.
        """
        self._folder = folder
        self.label = folder.resolve().name
        names, sizes, self._suffixes = StringsBuilder(), array("q"), Counter[str]()
        problems: list[tuple[str, str]] = []
        for path, size in self._walk(problems):
            names.add(path)
            sizes.append(size)
        self.names, self.sizes, self.problems = names.build(), np.array(sizes, np.int64), tuple(problems)
        if not len(self.names):
            shards = [suffix for suffix in sorted(ARCHIVE_SUFFIXES) if self._suffixes[suffix]]
            raise DataError(
                f"no picture below {folder}: looked for files that end in {', '.join(sorted(PICTURE_SUFFIXES))}, found "
                + describe_suffixes(self._suffixes)
                + (f"; for its archives pass {folder / '*'}{shards[0]}" if shards else "")
            )

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        return _read_file(self._folder / self.names[row], self.names[row])

    def read_texts(self, row: int) -> tuple[bytes | None, list[bytes]]:
        """Return the caption file of a picture, None for none, and its records as JSON."""
        path = self._folder / self.names[row]
        record = _read_beside(path.with_suffix(RECORD_SUFFIX))
        return _read_beside(path.with_suffix(CAPTION_SUFFIX)), [] if record is None else [record]

    def _walk(self, problems: list[tuple[str, str]]) -> Iterator[tuple[str, int]]:
        seen: set[tuple[int, int]] = set()

        def note(exc: OSError) -> None:
            problems.append((str(exc.filename), f"cannot be listed: {exc.strerror}"))

        for root, folders, files in os.walk(self._folder, followlinks=True, onerror=note):
            found = Path(root).stat()
            if (found.st_dev, found.st_ino) in seen:
                folders.clear()
                continue
            seen.add((found.st_dev, found.st_ino))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            prefix = Path(root).relative_to(self._folder)
            for name in sorted(files):
                suffix = Path(name).suffix.lower()
                if is_hidden(name):
                    continue
                self._suffixes[suffix or "(none)"] += 1
                if suffix in PICTURE_SUFFIXES:
                    yield (prefix / name).as_posix(), _size_of(Path(root, name))


class ArchiveOrigin:
    """Every picture in a zip or an uncompressed tar, by name, in the archive's order."""

    def __init__(self, path: Path, files: ArchiveFiles, store: Path | None) -> None:
        """Read the headers, or the index kept in `store`.

        Raises:
            DataError: it cannot be read, or has no picture.
        """
        self._path, self._files = path, files
        self._index = read_index(path, store)
        self.label = path.name
        self.names, self.sizes, self.problems = self._index.names, self._index.sizes(), self._index.problems

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        return self._read(int(self._index.pictures[row]), self.names[row])

    def read_texts(self, row: int) -> tuple[bytes | None, list[bytes]]:
        """Return the caption file of a picture, None for none, and its records as JSON."""
        caption, record = int(self._index.captions[row]), int(self._index.records[row])
        return (
            None if caption < 0 else self._read(caption, f"the caption of {self.names[row]}"),
            [] if record < 0 else [self._read(record, f"the record of {self.names[row]}")],
        )

    def _read(self, member: int, name: str) -> bytes:
        return self._files.read(self._path, self._index.members[member], name)


class ListOrigin:
    """A JSON-lines list: {"image": path relative to the list, "caption": str or "captions": [str, ...], anything else}.

    Lines that name one picture are one picture with all their captions, as lists with a line for each caption mean it.
    Only where the lines lie is kept in memory.
    """

    def __init__(self, path: Path, files: ArchiveFiles) -> None:
        """Read and check every line.

        Raises:
            DataError: the list cannot be read, or a line is not as above; names file:line.
        """
        self._path, self._files = path, files
        self.label = path.name
        self.problems: tuple[tuple[str, str], ...] = ()
        names, sizes = StringsBuilder(), array("q")
        places, lengths, owners = array("q"), array("q"), array("q")
        rows: dict[str, int] = {}
        try:
            with path.open("rb") as stream:
                place = 0
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        name = _check_line(line, f"{path}:{number}")
                        row = rows.setdefault(name, len(rows))
                        if row == len(sizes):
                            names.add(name)
                            sizes.append(_size_of(path.parent / name))
                        places.append(place)
                        lengths.append(len(line))
                        owners.append(row)
                    place += len(line)
        except OSError as exc:
            raise DataError(f"cannot read the list {path}: {exc.strerror or exc}") from exc
        if not len(sizes):
            raise DataError(f'no picture in {path}: expected lines like {{"image": "pictures/1.jpg"}}, found none')
        order = np.argsort(np.array(owners, np.int64), kind="stable")
        self.names, self.sizes = names.build(), np.array(sizes, np.int64)
        self._places, self._lengths = np.array(places, np.int64)[order], np.array(lengths, np.int64)[order]
        self._ends = np.cumsum(np.bincount(np.array(owners, np.int64), minlength=len(sizes)))

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        return _read_file(self._path.parent / self.names[row], self.names[row])

    def read_texts(self, row: int) -> tuple[bytes | None, list[bytes]]:
        """Return no caption file, and the lines of a picture."""
        lines = range(int(self._ends[row - 1]) if row else 0, int(self._ends[row]))
        name = f"the line of {self.names[row]}"
        return None, [
            self._files.read_part(self._path, int(self._places[i]), int(self._lengths[i]), name) for i in lines
        ]


def _check_line(line: bytes, where: str) -> str:
    """Return the picture that a line names."""
    try:
        record: Any = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{where} is not JSON: {exc}") from exc
    if not isinstance(record, dict) or not isinstance(record.get("image"), str) or not record["image"].strip("\0"):
        raise DataError(f'{where}: expected a line like {{"image": "pictures/1.jpg", "caption": "..."}}')
    if "\0" in record["image"]:
        raise DataError(f"{where}: the image has a zero character in its path")
    if not isinstance(record.get("caption", ""), str):
        raise DataError(f"{where}: expected caption to be a text, got {record['caption']!r}")
    captions = record.get("captions", [])
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where}: expected captions to be a list of texts, got {captions!r}")
    return Path(record["image"]).as_posix()


def _size_of(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return _MISSING
    return found.st_size if stat.S_ISREG(found.st_mode) else _MISSING


def _read_file(path: Path, name: str) -> bytes:
    try:
        # Opening a named pipe would wait for ever, so look before.
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"{name} is not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{name} is above {MAX_FILE_BYTES // 2**20} MiB: scale it down first")
        return path.read_bytes()
    except OSError as exc:
        raise ImageError(f"cannot read {name}: {exc.strerror or exc}") from exc


def _read_beside(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
