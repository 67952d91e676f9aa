"""What the gallery makes of pictures: an entry for each, with metadata that a search answer can carry.

A source yields one entry after another, in a stable order, without reading a picture; `Entry.read` does, in the worker
that decodes it. What is known to be unusable before that (a broken line, a name that is no text) comes as `Rejected`.
Which files are pictures, and the format of a list, is said in `asymcir_common.places`.
"""

import fnmatch
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from asymcir_common import ImageError, PlaceError
from asymcir_common.places import Places, Rejected, open_places, parse_record
from asymcir_common.places.rules import to_nfc
from google.protobuf.message import DecodeError, EncodeError
from google.protobuf.struct_pb2 import Struct

from asymcir_server.errors import GalleryBuildError

MAX_METADATA_BYTES = 64 * 1024
"""Of one picture, as JSON: an answer of 50 hits is then never above the 4 MB of a gRPC message for its metadata."""

_NO_METADATA = frozenset({"path", "image", "id"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One picture to be.

    Attributes:
        id: unique in the gallery, or rejected when it is built; put into Unicode's form NFC.
        path: as the quarantine names it.
        read: returns the file's bytes; raises ImageError when it cannot.
        metadata: what search answers carry on request, JSON values.
    """

    id: str
    path: str
    read: Callable[[], bytes]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", to_nfc(self.id))


class Source:
    """A finite, repeatable run of entries: first what is known to be unusable, then the pictures.

    Attributes:
        found: what is there, for the error where no picture is.
        passed_over: suffix -> files of folders and archives that are not taken for pictures, the most frequent first.
        passed_over_examples: suffix -> one of them.
        left_out: rule -> what hidden names and names of junk leave out there, a folder as one, and pictures that the
            patterns leave out.
    """

    def __init__(self, places: Places, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Take pictures of some places.

        Args:
            places: open.
            include: patterns; where there are any, a picture is taken if its path matches one.
            exclude: patterns; a picture is left out if its path matches one. See `match_path`.
        """
        self._places = places
        self.found = "; ".join(place.found for place in places.places)
        passed_over = Counter[str]()
        for opened in places.places:
            passed_over.update(opened.passed_over)
        self.passed_over = dict(passed_over.most_common())
        self.passed_over_examples: dict[str, str] = {}
        left_out = Counter[str]()
        for opened in reversed(places.places):
            self.passed_over_examples.update(opened.passed_over_examples)
            left_out.update(opened.left_out)
        self._numbers: Sequence[int] = range(len(places))
        if include or exclude:
            rules = [self._leave_out(number, include, exclude) for number in self._numbers]
            left_out.update(rule for rule in rules if rule)
            self._numbers = [number for number, rule in enumerate(rules) if not rule]
        self.left_out = dict(left_out.most_common())

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield the entries in a stable order."""
        yield from self._places.rejected
        for number in self._numbers:
            identity = self._places.ids[number]
            place, row = self._places.find(number)
            path, lines = place.path(row), []
            try:
                lines = place.lines(row)
                metadata = read_metadata(lines[0]) if lines else {}
            except (ImageError, ValueError) as exc:
                yield Rejected(id=identity, path=path, reason=str(exc))
            else:
                yield Entry(id=identity, path=path, read=partial(self._places.read, number), metadata=metadata)
            for _ in lines[1:]:
                yield Rejected(id=identity, path=path, reason="an earlier line names the same picture by the same id")

    def __len__(self) -> int:
        """Return how many there are, for the progress line."""
        return len(self._numbers) + len(self._places.rejected)

    def _leave_out(self, number: int, include: Sequence[str], exclude: Sequence[str]) -> str | None:
        place, row = self._places.find(number)
        path = place.path(row)
        if include and not any(match_path(path, pattern) for pattern in include):
            return "--include"
        return next((f"--exclude {pattern}" for pattern in exclude if match_path(path, pattern)), None)


def match_path(path: str, pattern: str) -> bool:
    """Whether a path, or a part of it, matches a pattern of the shell: "drafts" and "*_thumb.*" anywhere, "a/*" from
    the place on; `*` matches a slash too."""
    if "/" in pattern:
        return fnmatch.fnmatchcase(path, pattern)
    return any(fnmatch.fnmatchcase(part, pattern) for part in path.split("/"))


def open_source(
    images: str | Path | Sequence[str | Path], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Source:
    """Open folders (searched recursively), archives and lists; see `asymcir_common.places.open_places` and `Source`.

    Raises:
        GalleryBuildError: nothing is there, it is none of these, or it cannot be read.
    """
    try:
        return Source(open_places(images), include=include, exclude=exclude)
    except PlaceError as exc:
        raise GalleryBuildError(str(exc)) from exc


def read_metadata(line: bytes) -> dict[str, Any]:
    """Return all of a line that names neither the picture nor its id, its texts in Unicode's form NFC.

    It is sent through the message that will carry it, so that no search answer can fail on it later.

    Raises:
        ValueError: it cannot be sent, or is larger than MAX_METADATA_BYTES.
    """
    metadata = {to_nfc(key): _normalise(value) for key, value in parse_record(line).items() if key not in _NO_METADATA}
    message = Struct()
    try:
        message.update(metadata)
        Struct.FromString(message.SerializeToString())
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, OverflowError, RecursionError, DecodeError, EncodeError) as exc:
        raise ValueError(f"the metadata cannot be sent in an answer: {exc}") from exc
    if (size_bytes := len(text.encode())) > MAX_METADATA_BYTES:
        raise ValueError(f"the metadata has {size_bytes} bytes as JSON, a picture's may have {MAX_METADATA_BYTES}")
    return metadata


def _normalise(value: Any) -> Any:
    if isinstance(value, str):
        return to_nfc(value)
    if isinstance(value, list):
        return [_normalise(item) for item in value]
    if isinstance(value, dict):
        return {to_nfc(key): _normalise(item) for key, item in value.items()}
    return value
