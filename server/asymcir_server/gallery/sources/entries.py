"""What the gallery makes of pictures: an entry for each, with metadata that a search answer can carry.

A source yields one entry after another, in a stable order, without reading a picture; `Entry.read` does, in the worker
that decodes it. What is known to be unusable before that (a broken line, a name that is no text) comes as `Rejected`.
Which files are pictures, and the format of a list, is said in `asymcir_common.places`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from asymcir_common import ImageError, PlaceError
from asymcir_common.places import Places, Rejected, open_places, parse_record
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
        id: unique in the gallery, or rejected when it is built.
        path: as the quarantine names it.
        read: returns the file's bytes; raises ImageError when it cannot.
        metadata: what search answers carry on request, JSON values.
    """

    id: str
    path: str
    read: Callable[[], bytes]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Source:
    """A finite, repeatable run of entries: first what is known to be unusable, then the pictures.

    Attributes:
        found: what is there, for the error where no picture is.
        passed_over: suffix -> files of folders and archives that are not taken for pictures, the most frequent first.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self.found = "; ".join(place.found for place in places.places)
        passed_over = Counter[str]()
        for opened in places.places:
            passed_over.update(opened.passed_over)
        self.passed_over = dict(passed_over.most_common())

    def __iter__(self) -> Iterator[Entry | Rejected]:
        """Yield the entries in a stable order."""
        yield from self._places.rejected
        for number, identity in enumerate(self._places.ids):
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
        return len(self._places) + len(self._places.rejected)


def open_source(images: str | Path | Sequence[str | Path]) -> Source:
    """Open folders (searched recursively), archives and lists; see `asymcir_common.places.open_places`.

    Raises:
        GalleryBuildError: nothing is there, it is none of these, or it cannot be read.
    """
    try:
        return Source(open_places(images))
    except PlaceError as exc:
        raise GalleryBuildError(str(exc)) from exc


def read_metadata(line: bytes) -> dict[str, Any]:
    """Return all of a line that names neither the picture nor its id.

    It is sent through the message that will carry it, so that no search answer can fail on it later.

    Raises:
        ValueError: it cannot be sent, or is larger than MAX_METADATA_BYTES.
    """
    metadata = {key: value for key, value in parse_record(line).items() if key not in _NO_METADATA}
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
