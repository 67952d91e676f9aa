"""The index of an archive: its pictures and what stands beside them; made from its directory, and kept in a file.

A tar has no directory: its headers lie before each member, so all of it is gone through, 20 s for a million members in
the page cache, and a read for each from a disk or a file server. A kept index is one read of 0.3 s.

Notation: n pictures of an archive, m members (pictures, what stands beside them, and others).
"""

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import PlaceError
from asymcir_common.places.directories import Directory, read_directory
from asymcir_common.places.rules import (
    CAPTION_SUFFIX,
    PICTURE_SUFFIXES,
    RECORD_SUFFIX,
    Rejected,
    check_id,
    describe_suffixes,
    hidden_by,
    passed_over,
    suffix_of,
)

_VERSION = 4
_ROWS = ("members", "pictures", "captions", "records")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveIndex:
    """The pictures of an archive, by name.

    Attributes:
        names: [n].
        members: [m], of file_reading.MEMBER.
        pictures, captions, records: [n], the row in `members` of each picture, of the .txt and of the .json of its
            name; -1 for none.
        rejected: what cannot be a picture.
        found: what the archive holds, for errors.
        passed_over: suffix -> members that are not taken for pictures.
        passed_over_examples: suffix -> the first of them.
        left_out: rule of `hidden_by` -> members.
    """

    names: list[str]
    members: NDArray[np.void]
    pictures: NDArray[np.int64]
    captions: NDArray[np.int64]
    records: NDArray[np.int64]
    rejected: tuple[Rejected, ...]
    found: str
    passed_over: dict[str, int]
    passed_over_examples: dict[str, str]
    left_out: dict[str, int]


def make_index(directory: Directory) -> ArchiveIndex:
    """Find the pictures, what stands beside each, and what cannot be one."""
    suffixes, hidden, left_out = Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, str] = {}
    named: list[tuple[str, int]] = []
    beside: dict[str, dict[str, int]] = {CAPTION_SUFFIX: {}, RECORD_SUFFIX: {}}
    rejected = [*directory.rejected]
    for row, name in enumerate(directory.names):
        suffix = suffix_of(name)
        suffixes[suffix] += 1
        if rule := hidden_by(name):
            hidden[suffix] += 1
            left_out[rule] += 1
            continue
        if suffix in PICTURE_SUFFIXES:
            if reason := check_id(name):
                rejected.append(Rejected(id=name, path=name, reason=reason))
            else:
                named.append((name, row))
            continue
        examples.setdefault(suffix, name)
        if suffix in beside:
            beside[suffix].setdefault(os.path.splitext(name)[0], row)  # noqa: PTH122
    # The sort is stable, so of two members of one name the first in the archive comes first.
    named.sort(key=lambda item: item[0])
    return ArchiveIndex(
        names=[name for name, _ in named],
        members=directory.members,
        pictures=np.array([row for _, row in named], np.int64),
        captions=_find_beside(named, beside[CAPTION_SUFFIX]),
        records=_find_beside(named, beside[RECORD_SUFFIX]),
        rejected=tuple(rejected),
        found=describe_suffixes(suffixes),
        passed_over=passed_over(suffixes - hidden),
        passed_over_examples=examples,
        left_out=dict(left_out),
    )


def read_index(path: Path, folder: Path | None = None) -> ArchiveIndex:
    """Return the index of an archive: the kept one, or that which the archive gives, which is then kept.

    Args:
        path: the archive.
        folder: where indexes are kept; None: nowhere. That of an archive whose size or time of change is another is
            not taken.

    Raises:
        PlaceError: the archive cannot be read.
    """
    if folder is None:
        return make_index(read_directory(path))
    kept = _name_of(path, folder)
    index = _load(kept)
    if index is None:
        index = make_index(read_directory(path))
        _save(kept, index)
    return index


def _name_of(path: Path, folder: Path) -> Path:
    try:
        found = path.stat()
    except OSError as exc:
        raise PlaceError(f"cannot read the archive {path}: {exc.strerror or exc}") from exc
    identity = f"{_VERSION}:{path.resolve()}:{found.st_size}:{found.st_mtime_ns}"
    return folder / f"{path.name}-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}.npz"


def _load(path: Path) -> ArchiveIndex | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            texts = json.loads(arrays["texts"].tobytes())
            return ArchiveIndex(
                names=texts["names"],
                rejected=tuple(Rejected(**item) for item in texts["rejected"]),
                found=texts["found"],
                passed_over=texts["passed_over"],
                passed_over_examples=texts["passed_over_examples"],
                left_out=texts["left_out"],
                **{key: arrays[key] for key in _ROWS},
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as exc:
        _log.warning("the index %s is damaged and made anew: %s", path, exc)
        return None


def _save(path: Path, index: ArchiveIndex) -> None:
    texts = {
        "names": index.names,
        "rejected": [asdict(item) for item in index.rejected],
        "found": index.found,
        "passed_over": index.passed_over,
        "passed_over_examples": index.passed_over_examples,
        "left_out": index.left_out,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            block = np.frombuffer(json.dumps(texts).encode(), np.uint8)
            np.savez(stream, texts=block, **{key: getattr(index, key) for key in _ROWS})
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as exc:
        _log.warning("the index %s cannot be kept: %s", path, exc)
        with contextlib.suppress(OSError):
            temporary.unlink()


def _find_beside(named: Sequence[tuple[str, int]], rows: dict[str, int]) -> NDArray[np.int64]:
    return np.fromiter((rows.get(os.path.splitext(name)[0], -1) for name, _ in named), np.int64, len(named))  # noqa: PTH122
