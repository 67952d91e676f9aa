"""A zip or an uncompressed tar as a place of pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asymcir_common.places.archive_index import read_index
from asymcir_common.places.file_reading import OpenFiles, place_of_member, stamp_of


class ArchivePlace:
    """Every picture of a zip or an uncompressed tar, by sorted name; see `Place`."""

    def __init__(
        self,
        path: Path,
        files: OpenFiles,
        prefix: str = "",
        *,
        index_folder: Path | None = None,
    ) -> None:
        """Read the archive's directory.

        Args:
            path: the archive.
            files: reads its members.
            prefix: stands before the name in every id.
            index_folder: keeps the index, so that the next run need not read the directory again.

        Raises:
            PlaceError: it cannot be read.
        """
        index = read_index(path, index_folder)
        self._place, _, self._changed_ns = stamp_of(path)
        self._path, self._files, self._prefix = path, files, prefix
        self._members, self._pictures = index.members, index.pictures
        self._captions, self._records = index.captions, index.records
        self.where = str(path)
        self.label = path.name
        self.ids: Sequence[str] = [prefix + name for name in index.names] if prefix else index.names
        self.rejected, self.found = index.rejected, index.found
        self.passed_over: Mapping[str, int] = index.passed_over
        self.passed_over_examples: Mapping[str, str] = index.passed_over_examples
        self.left_out: Mapping[str, int] = index.left_out

    def path(self, row: int) -> str:
        """Return the name of a picture in the archive."""
        return self.ids[row][len(self._prefix) :]

    def sizes(self) -> NDArray[np.int64]:
        """Return the unpacked size of each picture: [n], bytes."""
        return self._members["size"][self._pictures].astype(np.int64)

    def stamp(self, row: int) -> tuple[str, int, int]:
        """Return where a picture lies on this machine, its size unpacked, and when its archive changed, in ns."""
        name, member = self.path(row), self._members[self._pictures[row]]
        around = (*self.ids[max(row - 1, 0) : row], *self.ids[row + 1 : row + 2])  # of one name, they are neighbours
        return (
            place_of_member(self._place, name, member, repeated=self.ids[row] in around),
            int(member["size"]),
            self._changed_ns,
        )

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        return self._read(int(self._pictures[row]), self.path(row))

    def lines(self, row: int) -> list[bytes]:
        """Return no line: an archive is no list."""
        del row
        return []

    def beside(self, row: int) -> tuple[bytes | None, bytes | None]:
        """Return the .txt and the .json of a picture's name; None for none."""
        caption, record = int(self._captions[row]), int(self._records[row])
        return (
            None if caption < 0 else self._read(caption, f"the caption of {self.path(row)}"),
            None if record < 0 else self._read(record, f"the record of {self.path(row)}"),
        )

    def _read(self, member: int, name: str) -> bytes:
        return self._files.read_member(self._path, self._members[member], name)
