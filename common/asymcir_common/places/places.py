"""Pictures by number, from folders, archives and lists, one after another: the one reader of training and gallery.

A million pictures with names of 23 characters, on CPython 3.11: bytes a name in the memory of each process, and what
opening takes.

| place | kept, bytes a name | at most while opening, MB | CPU time, s |
|---|---|---|---|
| folder | 90 | 90 | 2 |
| list | 210; 335 with ids of its own | 240; 380 | 6 |
| list of members of a zip | 450 | 650 | 18 |
| zip | 160 | 650 | 9 |
| tar | 145 | 285 | 21 |
| zip or tar whose index is kept | 145 | 145 | 0.3 |

Notation: n pictures.
"""

import glob
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import PlaceError
from asymcir_common.places.archives import ArchivePlace
from asymcir_common.places.file_reading import OpenFiles
from asymcir_common.places.folders import FolderPlace
from asymcir_common.places.lists import ListPlace
from asymcir_common.places.parquet import ParquetPlace
from asymcir_common.places.rules import (
    ARCHIVE_SUFFIXES,
    LIST_SUFFIXES,
    PARQUET_SUFFIX,
    PICTURE_SUFFIXES,
    Rejected,
    is_compressed_tar,
    suffix_of,
)
from asymcir_common.remote_files import download, expand_url, is_url, name_of_url

_KINDS = "a folder, a .zip, an uncompressed .tar (with {000..012} and * for several), a .parquet file, or a .jsonl list"


class Place(Protocol):
    """One place that pictures come from. It opens files only when asked for a picture or its texts; picklable.

    Attributes:
        where: its path, for errors.
        label: tells its pictures apart from those of other places.
        ids: [n], in an order that depends on the names alone, or is that of the list.
        rejected: what cannot be a picture, known without reading one.
        found: what is there, for the error where no picture is.
        passed_over: suffix -> files that are not taken for pictures; hidden ones are not counted.
        passed_over_examples: suffix -> the first of them.
        left_out: rule of `rules.hidden_by` -> hidden files and folders; a folder counts as one.
    """

    where: str
    label: str
    ids: Sequence[str]
    rejected: tuple[Rejected, ...]
    found: str
    passed_over: Mapping[str, int]
    passed_over_examples: Mapping[str, str]
    left_out: Mapping[str, int]

    def path(self, row: int) -> str:
        """Return the name of a picture in the place."""

    def sizes(self) -> NDArray[np.int64]:
        """Return the size of each picture, as the place states it: [n], bytes; -1 where it is missing."""

    def stamp(self, row: int) -> tuple[str, int, int]:
        """Return where a picture lies on this machine, its size in bytes, and when that file changed, in ns."""

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""

    def lines(self, row: int) -> list[bytes]:
        """Return the lines of a list that name a picture; none in other places."""

    def beside(self, row: int) -> tuple[bytes | None, bytes | None]:
        """Return the .txt and the .json of a picture's name; None for none."""


class Places:
    """Several places as one sequence of n pictures.

    Attributes:
        places: in the order in which they were named.
        ids: [n], UTF-8 text of 1 to 1024 bytes. With several places, "LABEL/" stands before those that no list gives.
            Unique in a folder; elsewhere one may come twice.
        rejected: what cannot be a picture, and why.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self._ends = np.cumsum([len(place.ids) for place in places])
        self.ids: Sequence[str] = (
            places[0].ids if len(places) == 1 else list(itertools.chain.from_iterable(place.ids for place in places))
        )
        self.rejected: Sequence[Rejected] = [item for place in places for item in _label_rejected(place, len(places))]

    def __len__(self) -> int:
        """Return n."""
        return int(self._ends[-1])

    def find(self, number: int) -> tuple[Place, int]:
        """Return a picture's place and row there; IndexError for a number that is not below n."""
        number = range(len(self))[number]
        which = int(np.searchsorted(self._ends, number, side="right"))
        return self.places[which], number - (int(self._ends[which - 1]) if which else 0)

    def read(self, number: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        place, row = self.find(number)
        return place.read(row)


def open_places(specs: Sequence[str | Path] | str | Path, *, index_folder: str | Path | None = None) -> Places:
    """Open the places that pictures come from.

    Args:
        specs: each a folder (searched recursively), a .zip, an uncompressed .tar, a .parquet file (see `parquet`), or a
            .jsonl or .ndjson list (see `lists`). As a text, "shards/{000..012}.tar" and "shards/*.tar" name several,
            and "https://...", "s3://..." or "gs://..." a file that is downloaded first.
        index_folder: keeps what was read of archives, so that the next call need not read them again.

    Raises:
        PlaceError: nothing there, or it is no such place, or it cannot be read. A place without a picture is none.
    """
    index_folder = None if index_folder is None else Path(index_folder)
    specs = [specs] if isinstance(specs, str | Path) else specs
    paths = [path for spec in specs for path in _expand_spec(spec)]
    if not paths:
        raise PlaceError(f"no pictures were named: pass {_KINDS}")
    files = OpenFiles()
    local = [path for path in paths if isinstance(path, Path)]
    labels = dict(zip(local, name_places(local), strict=True)) if len(paths) > 1 else {}
    return Places(
        [
            _open_place(path, files, index_folder, label=labels.get(path, ""))
            if isinstance(path, Path)
            else _open_url(path, files, several=len(paths) > 1)
            for path in paths
        ]
    )


def name_places(paths: Sequence[Path]) -> list[str]:
    """Return what tells several places apart: their names, with as many folders before as that takes.

    "red/shoes" and "blue/shoes" of a/red/shoes and a/blue/shoes; "shoes" where no other place has this name.
    """
    parts = [path.resolve().parts for path in paths]
    depths = dict.fromkeys(parts, 1)
    while True:
        counts = Counter(place[-depth:] for place, depth in depths.items())
        again = [place for place, depth in depths.items() if counts[place[-depth:]] > 1 and depth < len(place)]
        if not again:
            return ["/".join(place[-depths[place] :]).lstrip("/") for place in parts]
        for place in again:
            depths[place] += 1


def find_pictures(place: str | Path) -> list[Path]:
    """Return the paths of the pictures of a folder or an archive, sorted, for `PathReader`; none where there is none.

    Raises:
        PlaceError: it is no such place, or cannot be read.
    """
    place = Path(place)
    if not place.exists():
        return []
    found = _open_place(place, OpenFiles(), None)
    if isinstance(found, ListPlace | ParquetPlace):
        raise PlaceError(f"{place} is a list: expected a folder, a .zip or an uncompressed .tar")
    return sorted(place / found.path(row) for row in range(len(found.ids)))


def _expand_spec(spec: str | Path) -> Sequence[str | Path]:
    """Expand braces, as bash does, and globs; a name that exists as it stands, or is a Path, is taken as it stands.

    Raises:
        PlaceError: nothing there for one of the names.
    """
    from braceexpand import braceexpand  # a phone's install does not have it, and reads no shards

    text = str(spec)
    if not text.strip():
        raise PlaceError(f"a place of pictures was named by an empty text: pass {_KINDS}")
    if isinstance(spec, Path) or Path(text).exists():
        return [Path(spec)]
    try:
        names = list(braceexpand(text, escape=False))
    except ValueError:  # unbalanced braces
        names = [text]
    if is_url(text):
        return [url for name in names for url in expand_url(name)]
    found: list[Path] = []
    for name in names:
        if Path(name).exists() or not glob.has_magic(name):
            found.append(Path(name))
            continue
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise PlaceError(f"no file matches {name}: expected {_KINDS}")
        found += [Path(match) for match in matches]
    missing = [path for path in found if not path.exists()]
    if missing:
        what = "does not exist" if len(missing) == 1 else f"and {len(missing) - 1} more do not exist"
        source = "" if str(missing[0]) == text else f", from {text}"
        raise PlaceError(f"{missing[0]} {what}{source}: expected {_KINDS}")
    return found


def _open_url(spec: str, files: OpenFiles, *, several: bool) -> Place:
    suffix = suffix_of(name_of_url(spec))
    if suffix not in {*ARCHIVE_SUFFIXES, *LIST_SUFFIXES, PARQUET_SUFFIX}:
        raise PlaceError(f"{spec} is no place that pictures come from: expected a .zip, .tar, .parquet or .jsonl there")
    path = download(spec)
    place = _open_place(path, files, None, label=path.name if several else "", url=spec)
    place.where = spec
    return place


def _open_place(path: Path, files: OpenFiles, index_folder: Path | None, *, label: str = "", url: str = "") -> Place:
    place = _open_kind(path, files, index_folder, f"{label}/" if label else "", url)
    if label:
        place.label = label
    return place


def _open_kind(path: Path, files: OpenFiles, index_folder: Path | None, prefix: str, url: str) -> Place:
    suffix = path.suffix.lower()
    if path.is_dir():
        return FolderPlace(path, prefix)
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise PlaceError(f"{path} {what}: expected {_KINDS}")
    if suffix in ARCHIVE_SUFFIXES or is_compressed_tar(path.name):
        return ArchivePlace(path, files, prefix, index_folder=index_folder)
    if suffix in LIST_SUFFIXES:
        return ListPlace(path, files, prefix, url=url)
    if suffix == PARQUET_SUFFIX:
        return ParquetPlace(path, files, prefix, url=url)
    if suffix in PICTURE_SUFFIXES:
        raise PlaceError(f"{path} is a picture: expected {_KINDS}")
    raise PlaceError(f"{path} is no place that pictures come from: expected {_KINDS}")


def _label_rejected(place: Place, count: int) -> Sequence[Rejected]:
    if count == 1:
        return place.rejected
    return [
        Rejected(id=f"{place.label}/{item.id}" if item.path == item.id else item.id, path=item.path, reason=item.reason)
        for item in place.rejected
    ]
