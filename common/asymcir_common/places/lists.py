"""A JSON-lines list as a place of pictures: the one list format of training and gallery.

A line is `{"path": ..., "id": ..., "captions": [...], "concept": ..., anything else: metadata}`:

| field | what it is |
|---|---|
| `path`, or `image` | the picture, from the list's folder, or a URL; may lead into a zip or tar: "g.zip/1f600.png" |
| `id` | a text or a whole number; default: the path |
| `captions`, `caption` | a list of texts; one text |
| `concept` | what the picture shows, a text that pictures of the same thing share |

Lines of the same id and path are one picture with all their captions. A wrong line is rejected by itself, and the list
goes on. A list is written by whom it serves, so its paths may lead anywhere.
"""

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import PlaceError
from asymcir_common.files import MAX_FILE_BYTES
from asymcir_common.places.file_reading import MISSING, OpenFiles
from asymcir_common.places.path_reading import PathReader, may_lead_into_archive
from asymcir_common.places.rules import Rejected, check_id
from asymcir_common.remote_files import check_url, is_url, join_url, read_url

_EXPECTED = 'expected a line like {"path": "pictures/1.jpg", "captions": ["a red mug"]}'
_UNTIDY = re.compile(r"(^|/)\.?(/|$)")  # a part that is empty or a dot


class NotAnObjectError(ValueError):
    """A line or a .json file is no JSON object; the text continues "it is "."""


class ListedPicture(NamedTuple):
    """What a line names: a path without `./`, the id, and whether the line gave it."""

    path: str
    id: str
    has_id: bool


def parse_record(data: bytes) -> dict[str, Any]:
    """Parse a line or a .json file.

    Raises:
        NotAnObjectError: it is no JSON object.
    """
    try:
        record = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise NotAnObjectError(f"not JSON: {getattr(exc, 'msg', exc)}") from exc  # its line is not the list's
    if not isinstance(record, dict):
        raise NotAnObjectError(f"not a JSON object: {_EXPECTED}")
    return record


def captions_of(record: Mapping[str, Any]) -> list[str]:
    """Return `caption` and `captions` of a record, each on one line; what is no text is passed over."""
    captions = record.get("captions")
    found = [record.get("caption"), *(captions if isinstance(captions, list) else [captions])]
    lines = (" ".join(caption.split()) for caption in found if isinstance(caption, str))
    return [line for line in lines if line]


def concept_of(record: Mapping[str, Any]) -> str | None:
    """Return `concept` of a record, None for none."""
    concept = record.get("concept")
    return concept if isinstance(concept, str) and concept else None


def parse_line(line: bytes) -> ListedPicture:
    """Read and check a line of a list.

    Raises:
        ValueError: it is not as above; one line of text.
    """
    record = parse_record(line)
    name = record.get("path", record.get("image"))
    if not isinstance(name, str) or not name.strip("\0"):
        raise ValueError(_EXPECTED)
    if "\0" in name:
        raise ValueError("the path has a zero character in it")
    path = Path(name).as_posix() if _UNTIDY.search(name) and not is_url(name) else name
    identity = record.get("id", path)
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    if not isinstance(identity, str):
        raise ValueError(f"expected a text or a whole number as id, got {identity!r}")
    reason = check_id(identity) or check_id(path) or _check_texts(record)
    if reason:
        raise ValueError(reason)
    return ListedPicture(path, identity, "id" in record)


class ListPlace:
    """The pictures of a list, in its order; see `Place`. Of the lines, only where they lie is kept in memory."""

    def __init__(self, path: Path, files: OpenFiles, prefix: str = "", *, url: str = "") -> None:
        """Read and check every line.

        Args:
            path: the list.
            files: reads the lines, and the members of archives.
            prefix: stands before the path in an id that the line does not give; not before a URL.
            url: where the list came from; paths are relative to it.

        Raises:
            PlaceError: the list cannot be read, or is UTF-16.
        """
        self._path, self._url, self._files, self._reader = path, url, files, PathReader(files)
        self.where = str(path)
        self.label = path.name
        ids, paths, rejected = list[str](), list[str](), list[Rejected]()
        places, lengths, owners = array("q"), array("q"), array("q")
        rows: dict[tuple[str, str] | str, int] = {}
        try:
            with path.open("rb") as stream:
                refuse_utf16(path, stream.read(4))
                stream.seek(0)
                end = 0
                for number, line in enumerate(stream, start=1):
                    start, end = end, end + len(line)
                    if not line.strip():
                        continue
                    try:
                        name = ""
                        name, identity, has_id = parse_line(line)
                        if url or is_url(name):
                            check_url(join_url(url, name))
                        elif may_lead_into_archive(name):
                            self._reader.check(path.parent / name)
                    except (ValueError, PlaceError) as exc:
                        reason = f"line {number} is {exc}" if isinstance(exc, NotAnObjectError) else str(exc)
                        rejected.append(Rejected(id=f"{path.name}:{number}", path=name, reason=reason))
                        continue
                    row = rows.setdefault(name if identity == name else (identity, name), len(rows))
                    if row == len(ids):
                        paths.append(name)
                        given = identity if has_id or is_url(name) else prefix + name
                        ids.append(name if given == name else given)
                    places.append(start)
                    lengths.append(len(line))
                    owners.append(row)
        except OSError as exc:
            raise PlaceError(f"cannot read the list {path}: {exc.strerror or exc}") from exc
        self.ids: Sequence[str] = ids
        self.rejected = tuple(rejected)
        self.found = f"{_EXPECTED}, found {len(rejected) or 'none'}" + (" that are not" if rejected else "")
        self.passed_over: Mapping[str, int] = {}
        self.passed_over_examples: Mapping[str, str] = {}
        self.left_out: Mapping[str, int] = {}
        self._paths = paths
        order = np.argsort(np.array(owners, np.int64), kind="stable")
        self._places, self._lengths = np.array(places, np.int64)[order], np.array(lengths, np.int64)[order]
        self._ends = np.cumsum(np.bincount(np.array(owners, np.int64), minlength=len(ids)))

    def path(self, row: int) -> str:
        """Return the path of a picture, as its line gives it, without `./`."""
        return self._paths[row]

    def sizes(self) -> NDArray[np.int64]:
        """Ask the file system for the size of each picture: [n], bytes; MISSING for those at URLs."""
        sizes = (MISSING if self._at_url(name) else self._reader.size(self._path.parent / name) for name in self._paths)
        return np.fromiter(sizes, np.int64, len(self._paths))

    def stamp(self, row: int) -> tuple[str, int, int]:
        """Return where a picture lies on this machine, its size in bytes, and when that file changed, in ns."""
        if self._at_url(self._paths[row]):
            return join_url(self._url, self._paths[row]), MISSING, 0
        return self._reader.stamp(self._path.parent / self._paths[row])

    def read(self, row: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        name = self._paths[row]
        if self._at_url(name):
            return read_url(join_url(self._url, name), name, most_bytes=MAX_FILE_BYTES)
        return self._reader.read(self._path.parent / name, name)

    def _at_url(self, name: str) -> bool:
        return bool(self._url) or is_url(name)

    def lines(self, row: int) -> list[bytes]:
        """Return the lines of a picture; ImageError when the list is not as it was."""
        numbers = range(int(self._ends[row - 1]) if row else 0, int(self._ends[row]))
        name = f"the line of {self._paths[row]}"
        return [self._files.read_part(self._path, int(self._places[i]), int(self._lengths[i]), name) for i in numbers]

    def beside(self, row: int) -> tuple[bytes | None, bytes | None]:
        """Return nothing: what is known of a listed picture stands in its lines."""
        del row
        return None, None


def _check_texts(record: Mapping[str, Any]) -> str | None:
    for key in ("caption", "concept"):
        if not isinstance(record.get(key) or "", str):
            return f"expected {key} to be a text, got {record[key]!r}"
    captions = record.get("captions") or []
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        return f"expected captions to be a list of texts, got {captions!r}"
    try:
        for text in (record.get("caption"), record.get("concept"), *captions):
            (text or "").encode("utf-8")
    except UnicodeEncodeError:
        return "a caption or the concept is not UTF-8 text"
    return None


def refuse_utf16(path: Path, start: bytes) -> None:
    """Refuse a list by its first bytes; raises PlaceError."""
    # A JSON text starts with an ASCII character, which in UTF-16 and UTF-32 has a zero byte beside it.
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise PlaceError(f"the list {path} is UTF-16: save it as UTF-8")
