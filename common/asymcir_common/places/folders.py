"""A folder as a place of pictures."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asymcir_common.places.file_reading import read_file, read_file_beside, size_of, stamp_of
from asymcir_common.places.rules import (
    ARCHIVE_SUFFIXES,
    CAPTION_SUFFIX,
    PICTURE_SUFFIXES,
    RECORD_SUFFIX,
    Rejected,
    check_id,
    describe_suffixes,
    hidden_by,
    is_hidden,
    passed_over,
    suffix_of,
)


class FolderPlace:
    """Every picture below a folder, by relative POSIX path; see `Place`.

    The order: a folder's files by sorted name, then its folders by sorted name. Links to files are followed. Links to
    folders are rejected with the reason: what they lead to can be named as a place of its own.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        """Walk the folder.

        Args:
            folder: where to look.
            prefix: stands before the relative path in every id.
        """
        self._folder, self._prefix = folder, prefix
        self.where = str(folder)
        self.label = folder.resolve().name
        self._suffixes, rejected = Counter[str](), list[Rejected]()
        self._left_out, self._examples = Counter[str](), dict[str, str]()
        self.ids: Sequence[str] = [prefix + name for name in self._walk(rejected)]
        self.rejected = tuple(rejected)
        shards = [suffix for suffix in sorted(ARCHIVE_SUFFIXES) if self._suffixes[suffix]]
        hint = f"; for its archives pass {folder / '*'}{shards[0]}" if shards else ""
        self.found = describe_suffixes(self._suffixes) + hint
        self.passed_over: Mapping[str, int] = passed_over(self._suffixes)
        self.passed_over_examples: Mapping[str, str] = self._examples
        self.left_out: Mapping[str, int] = self._left_out

    def path(self, row: int) -> str:
        """Return the relative path of a picture."""
        return self.ids[row][len(self._prefix) :]

    def sizes(self) -> NDArray[np.int64]:
        """Ask the file system for the size of each picture: [n], bytes."""
        count = len(self.ids)
        return np.fromiter((size_of(self._folder / self.path(row)) for row in range(count)), np.int64, count)

    def stamp(self, row: int) -> tuple[str, int, int]:
        """Return where a picture lies on this machine, its size in bytes, and when that file changed, in ns."""
        return stamp_of(self._folder / self.path(row))

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        return read_file(self._folder / self.path(row), self.path(row))

    def lines(self, row: int) -> list[bytes]:
        """Return no line: a folder is no list."""
        del row
        return []

    def beside(self, row: int) -> tuple[bytes | None, bytes | None]:
        """Return the .txt and the .json of a picture's name; None for none."""
        path = self._folder / self.path(row)
        return read_file_beside(path.with_suffix(CAPTION_SUFFIX)), read_file_beside(path.with_suffix(RECORD_SUFFIX))

    def _walk(self, rejected: list[Rejected]) -> Iterator[str]:
        def reject(name: str, reason: str) -> None:
            rejected.append(Rejected(id=name, path=name, reason=reason))

        def note(exc: OSError) -> None:
            reject(str(exc.filename), f"cannot be listed: {exc.strerror}")

        for root, folders, files in os.walk(self._folder, onerror=note):
            relative = Path(root).relative_to(self._folder).as_posix()
            prefix = "" if relative == "." else f"{relative}/"
            self._left_out.update(rule for name in (*folders, *files) if (rule := hidden_by(name)))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in folders:
                if Path(root, name).is_symlink():
                    reject(prefix + name, "a link to a folder is not followed: pass what it leads to as another place")
            for name in sorted(files):
                if is_hidden(name):
                    continue
                suffix = suffix_of(name)
                self._suffixes[suffix] += 1
                if suffix not in PICTURE_SUFFIXES:
                    self._examples.setdefault(suffix, prefix + name)
                    continue
                if reason := check_id(prefix + name):
                    reject(prefix + name, reason)
                else:
                    yield prefix + name
