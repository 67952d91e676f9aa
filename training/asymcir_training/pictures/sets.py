"""Pictures by number, from wherever they are: what the scan, the cache and the batches read.

Notation: n pictures, S picture side.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from asymcir_common import ImageError, PlaceError, Preprocessing, decode_image, preprocess
from asymcir_common.places import Places, captions_of, concept_of, open_places, parse_record
from numpy.typing import NDArray

from asymcir_training.errors import DataError

_LOGGED_PROBLEMS = 20

_log = logging.getLogger(__name__)


@runtime_checkable
class PictureSet(Protocol):
    """What training reads pictures from. Picklable, so that workers have it too.

    Attributes:
        keys: [n], unique; the same in every run over the same data, wherever it lies.
        digest: over keys and byte sizes (not over times of change, nor over the pictures' bytes).
        problems: (key, reason) of what cannot be a picture, known without reading one; not among the n.
    """

    keys: Sequence[str]
    digest: str
    problems: Sequence[tuple[str, str]]

    def __len__(self) -> int:
        """Return n."""

    def read(self, number: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""

    def captions(self, number: int) -> tuple[str, ...]:
        """Return its captions, none if it has none."""

    def concept(self, number: int) -> str | None:
        """Return what it shows, a text that pictures of the same thing share; None where that is not known."""

    def record(self, number: int) -> dict[str, Any]:
        """Return what else is known about it."""

    def decode(self, number: int, spec: Preprocessing) -> NDArray[np.uint8]:
        """Return it as a network sees it, [S, S, 3]; ImageError when it is corrupt."""


class Pictures:
    """Pictures of folders, archives and lists, one after another, read as `asymcir_common.places` does.

    Attributes: see PictureSet. A picture's key is its id there; one that comes again is followed by "#2".
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self.keys: Sequence[str] = _tell_apart(places.ids)
        sha256 = hashlib.sha256("\0".join(self.keys).encode("utf-8"))
        for place in places.places:
            sha256.update(place.sizes().tobytes())
        self.digest = sha256.hexdigest()
        self.problems: Sequence[tuple[str, str]] = tuple((item.id, item.reason) for item in places.rejected)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, number: int) -> bytes:
        """Return a picture's file.

        Raises:
            ImageError: it cannot be read; names the key.
        """
        return self._places.read(number)

    def place(self, number: int) -> tuple[str, int, int]:
        """Return where a picture lies on this machine, its size in bytes, and when that file changed, in ns."""
        place, row = self._places.find(number)
        return place.stamp(row)

    def captions(self, number: int) -> tuple[str, ...]:
        """Return the lines of the .txt of its name; without one, "caption" and "captions" of its records."""
        text, records = self._read_texts(number)
        if text is not None:
            lines = text.decode("utf-8-sig", "replace").splitlines()
        else:
            lines = [caption for record in records for caption in captions_of(record)]
        return tuple(line.strip() for line in lines if line.strip())

    def concept(self, number: int) -> str | None:
        """Return the first "concept" of its records, None for none."""
        concepts = (concept_of(record) for record in self._read_texts(number)[1])
        return next((concept for concept in concepts if concept is not None), None)

    def record(self, number: int) -> dict[str, Any]:
        """Return its line of a list, or the .json of its name; {} for neither. Of several lines, the first."""
        return next(iter(self._read_texts(number)[1]), {})

    def decode(self, number: int, spec: Preprocessing) -> NDArray[np.uint8]:
        """Return it as a network sees it, without normalisation: [S, S, 3].

        Raises:
            ImageError: it cannot be read or is corrupt; names the key.
        """
        return preprocess(decode_image(self.read(number), name=self.keys[number]), spec)

    def _read_texts(self, number: int) -> tuple[bytes | None, list[dict[str, Any]]]:
        """Read what is known of a picture: its .txt, its records; what is damaged is left out, and logged."""
        place, row = self._places.find(number)
        try:
            text, beside = place.beside(row)
            raw = place.lines(row) if beside is None else [beside]
        except ImageError as exc:
            _log.warning("the texts of %s are left out: %s", self.keys[number], exc)
            return None, []
        records = []
        for part in raw:
            try:
                records.append(parse_record(part))
            except ValueError as exc:
                _log.warning("the record of %s is left out, as it is %s", self.keys[number], exc)
        return text, records


class Wordless:
    """The part of a `PictureSet` whose pictures come without texts."""

    def captions(self, number: int) -> tuple[str, ...]:
        """Return none."""
        del number
        return ()

    def concept(self, number: int) -> str | None:
        """Return none."""
        del number
        return None

    def record(self, number: int) -> dict[str, Any]:
        """Return nothing."""
        del number
        return {}


def open_pictures(specs: Sequence[str | Path], *, index_folder: str | Path | None = None) -> Pictures:
    """Open pictures by where they are.

    Args:
        specs: each a folder (searched recursively; captions in a .txt of the same name, a record in a .json), a .zip
            or a WebDataset .tar with the same inside, or a .jsonl list ({"path": path relative to the list, "captions":
            [str, ...], "concept": str, ...}; see `asymcir_common.places.lists`). "shards/{000..012}.tar" and
            "shards/*.tar" name several.
        index_folder: keeps what was read of archives, so that the next run need not read them again.

    Raises:
        DataError: nothing there, or nothing usable; says what was looked for and what was found.
    """
    index_folder = None if index_folder is None else Path(index_folder)
    try:
        places = open_places(specs, index_folder=index_folder)
    except PlaceError as exc:
        raise DataError(str(exc)) from exc
    for place in places.places:
        if not place.ids:
            reasons = "".join(f"; {item.id}: {item.reason}" for item in place.rejected[:1])
            raise DataError(f"no picture in {place.where}: {place.found}{reasons}")
    pictures = Pictures(places)
    for key, reason in pictures.problems[:_LOGGED_PROBLEMS]:
        _log.warning("%s: %s", key, reason)
    if len(pictures.problems) > _LOGGED_PROBLEMS:
        _log.warning("and %d more that cannot be pictures", len(pictures.problems) - _LOGGED_PROBLEMS)
    return pictures


def _tell_apart(ids: Sequence[str]) -> Sequence[str]:
    """Return the ids, with "#2" behind one that was there before."""
    if len(set(ids)) == len(ids):
        return ids
    keys, times, again = list(ids), Counter[str](), 0
    for number, identity in enumerate(ids):
        times[identity] += 1
        if times[identity] > 1:
            keys[number] = f"{identity}#{times[identity]}"
            again += 1
    first = next(key for key, identity in zip(keys, ids, strict=True) if key != identity)
    _log.warning("%d pictures have the key of another one, such as %s: told apart so", again, first)
    return keys
