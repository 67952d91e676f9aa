"""Reading a file by its path, where the path may lead into a zip or a tar: "pictures/gallery.zip/1f600.png"."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import ImageError, PlaceError
from asymcir_common.places.directories import read_directory
from asymcir_common.places.file_reading import MISSING, OpenFiles, place_of_member, read_file, size_of, stamp_of

_ARCHIVE = re.compile(r"\.(zip|tar|tar\.\w+|tgz|tbz2?|txz)/", re.IGNORECASE)


class PathReader:
    """Reads files by their paths; picklable, so that workers have it too.

    A path whose leading part is a zip or a tar (by suffix, and a file) names a member of it. The directory of an
    archive is read once, 190 bytes a member are kept of it.
    """

    def __init__(self, files: OpenFiles | None = None) -> None:
        """Begin without archives.

        Args:
            files: what reads the members; its own where none is given.
        """
        self._files = files or OpenFiles()
        self._archives: dict[str, _Archive | str | None] = {}  # a text: why not; None: it is no file

    def check(self, path: str | Path) -> None:
        """Open the archive that a path leads into, if it leads into one.

        Raises:
            PlaceError: that cannot be read.
        """
        path = Path(path)
        self._find(path)

    def size(self, path: str | Path) -> int:
        """Return the size of a file or member in bytes, unpacked; MISSING (-1) where it cannot be read."""
        path = Path(path)
        try:
            found = self._find(path)
        except PlaceError:
            return MISSING
        if found is None:
            return size_of(path)
        archive, name = found
        row = archive.rows.get(name)
        return MISSING if row is None else int(archive.members[row]["size"])

    def stamp(self, path: str | Path) -> tuple[str, int, int]:
        """Return where a file or member lies, its `size`, and when the file or the archive changed, in ns."""
        path = Path(path)
        try:
            found = self._find(path)
        except PlaceError:
            found = None
        if found is None:
            return stamp_of(path)
        archive, name = found
        place, _, changed_ns = archive.stamp
        row = archive.rows.get(name)
        if row is None:
            return f"{place}/{name}", MISSING, changed_ns
        member = archive.members[row]
        where = place_of_member(place, name, member, repeated=name in archive.repeated)
        return where, int(member["size"]), changed_ns

    def read(self, path: str | Path, name: str = "") -> bytes:
        """Return the bytes of a file or member.

        Args:
            path: as above.
            name: how errors call it; the path by default.

        Raises:
            ImageError: it cannot be read; see file_reading.
        """
        path = Path(path)
        name = name or str(path)
        try:
            found = self._find(path)
        except PlaceError as exc:
            raise ImageError(f"cannot read {name}: {exc}") from exc
        if found is None:
            return read_file(path, name)
        archive, member = found
        row = archive.rows.get(member)
        if row is None:
            raise ImageError(f"cannot read {name}: there is no {member} in {archive.path}")
        return self._files.read_member(archive.path, archive.members[row], name)

    def _find(self, path: Path) -> "tuple[_Archive, str] | None":
        text = path.as_posix()
        for match in _ARCHIVE.finditer(text):
            place = text[: match.end() - 1]
            if place not in self._archives:
                self._archives[place] = _open_archive(Path(place))
            archive = self._archives[place]
            if isinstance(archive, str):
                raise PlaceError(archive)
            if archive is not None:
                return archive, text[match.end() :]
        return None


def may_lead_into_archive(name: str) -> bool:
    """Whether a path has a part, before its last one, that ends as the name of an archive does."""
    return _ARCHIVE.search(name) is not None


class _Archive:
    """The members of an archive by name; of two of one name the first."""

    def __init__(self, path: Path) -> None:
        directory = read_directory(path)
        self.path, self.stamp = path, stamp_of(path)
        self.members: NDArray[np.void] = directory.members
        self.rows: dict[str, int] = {}
        self.repeated: set[str] = set()
        for row, name in enumerate(directory.names):
            if self.rows.setdefault(name, row) != row:
                self.repeated.add(name)


def _open_archive(path: Path) -> _Archive | str | None:
    try:
        return _Archive(path) if path.is_file() else None
    except PlaceError as exc:
        return str(exc)
