"""The teacher cache: outputs of the frozen visual tower, computed once for each picture and shared by sets and runs.

A store (see keyed_rows.py) ROOT/pictures-KEY, KEY of the visual tower, its preprocessing, the precision, and whether
patches are kept:

    embedding.f32       [rows, E], image features, not normalised
    patches.f16         [rows, P, E], patch features, not normalised (if asked for)
    sets/DIGEST         quarantine.jsonl: the pictures of one set that cannot be decoded, and so have no row

The key of a picture is the SHA-256 of its file, whatever its name. A file whose place, size and time of change are
unchanged is not read again. Disk space for all pictures of a set is reserved first, so that a disk that is too small is
an error before the computation starts.

Notation: n pictures, b batch, E joint-embedding width, P patches, S picture side.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.batches.scan import QUARANTINE_NAME, PassProgress, only_one_process, write_quarantine
from asymcir_training.batches.workers import run_jobs
from asymcir_training.engine.execution import PickedRows, pick_rows
from asymcir_training.errors import CacheError, DataError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.teacher.encoder import Encoder, choose_encoder
from asymcir_training.teacher.keyed_rows import KeyedRows, Part, Writer

_WHAT = "the teacher cache"
_PARTS = (Part(name="embedding.f32", dtype=np.float32), Part(name="patches.f16", dtype=np.float16))
_SCHEMA = """
CREATE TABLE IF NOT EXISTS problems (key BLOB PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    place BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL, changed_ns INTEGER NOT NULL, key BLOB NOT NULL
) WITHOUT ROWID;
"""
_KEY_LENGTH = 16
_KEY_BYTES = 32
_NUMBERS_AT_ONCE = 10_000
_PRECISIONS = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCache:
    """The frozen visual tower's outputs for one set of pictures: rows of memory-mapped files.

    Attributes:
        folder: of the store.
        embedding: [rows, E], float32, not normalised.
        patches: [rows, P, E], float16, not normalised, or None.
        kept: [rows], the number of each row's picture, ascending.
        problems: (key, reason) of the pictures that have no row.
        identities: [rows, 32], uint8, the SHA-256 of each row's picture.
    """

    folder: Path
    embedding: NDArray[np.float32] | PickedRows
    patches: NDArray[np.float16] | PickedRows | None
    kept: NDArray[np.int64]
    problems: list[tuple[str, str]]
    identities: NDArray[np.uint8]


def build_teacher_cache(
    root: Path,
    foundation: Foundation,
    pictures: PictureSet,
    *,
    patches: bool,
    batch: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    autocast: torch.dtype | None = None,
) -> TeacherCache:
    """Open the foundation's outputs for these pictures, making those that no set had before.

    Several processes may call this at once: one makes what is missing, the others wait for it.

    Args:
        root: where stores are.
        foundation: frozen; moved to the device.
        pictures: which; those that cannot be decoded are put aside.
        patches: whether patch features are wanted too. With and without are two stores.
        batch: pictures of one forward pass.
        workers: processes that decode; 0: none beside this one.
        device: what to compute on.
        autocast: bfloat16 or float16 for mixed precision, None for float32. Another precision is another store.

    Raises:
        CacheError: no room for it, a store of another foundation, or a damaged one; features that are not finite.
        DataError: not one picture can be decoded.
        FoundationError: patches of a tower that has none.
    """
    if autocast not in _PRECISIONS:
        raise CacheError(f"expected the precision float32 (None), bfloat16 or float16, got {autocast}")
    facts = {
        "format": "asymcir-teacher-cache",
        "version": 2,
        "foundation": foundation.name,
        "visual_digest": foundation.visual_digest(),
        "preprocessing": foundation.preprocessing.to_json(),
        "precision": _PRECISIONS[autocast],
        "patches": patches,
    }
    # The name is how the foundation was asked for: its weights decide, not where they came from.
    named = {name: value for name, value in facts.items() if name != "foundation"}
    folder = root / f"pictures-{digest(weights={}, facts=named)[:_KEY_LENGTH]}"
    store = _open_store(folder, facts)
    known = _look_up(store, pictures)
    unreadable: dict[int, str] = {}
    if len(known.missing):
        with only_one_process(folder, _WHAT):
            store = _open_store(folder, facts)  # as the process before left it
            known = _look_up(store, pictures)
            if len(known.missing):
                encode = choose_encoder(foundation, patches=patches, device=torch.device(device), autocast=autocast)
                unreadable = _fill(store, pictures, known.missing, foundation.preprocessing, encode, batch, workers)
                known = _look_up(store, pictures)
    return _make_view(store, pictures, known, unreadable)


def _open_store(folder: Path, facts: dict[str, Any]) -> KeyedRows:
    return KeyedRows(folder, facts, _PARTS, what=_WHAT, schema=_SCHEMA)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What a store knows of n pictures.

    Attributes:
        keys: [n, 32], uint8, zero where the picture was not seen yet.
        rows: [n], -1 without one.
        problems: number -> why it cannot be decoded.
        missing: numbers that were not seen yet, or have neither row nor problem.
    """

    keys: NDArray[np.uint8]
    rows: NDArray[np.int64]
    problems: dict[int, str]
    missing: NDArray[np.int64]


def _look_up(store: KeyedRows, pictures: PictureSet) -> _Known:
    """Find what the store knows of pictures by where they are, their size and their time of change."""
    total = len(pictures)
    keys, rows = np.zeros((total, _KEY_BYTES), np.uint8), np.full(total, -1, np.int64)
    problems: dict[int, str] = {}
    for start in range(0, total, _NUMBERS_AT_ONCE):
        stamps = {n: _stamp(pictures, n) for n in range(start, min(start + _NUMBERS_AT_ONCE, total))}
        sql = "SELECT place, size_bytes, changed_ns, key FROM places WHERE place IN ({})"
        seen = {(place, *rest): key for place, *rest, key in store.query(sql, [stamp[0] for stamp in stamps.values()])}
        found = {number: seen[stamp] for number, stamp in stamps.items() if stamp in seen}
        asked = list(dict.fromkeys(found.values()))
        row_of = dict(zip(asked, store.find(asked).tolist(), strict=True))
        rowless = [key for key, row in row_of.items() if row < 0]
        reason_of = dict(store.query("SELECT key, reason FROM problems WHERE key IN ({})", rowless))
        for number, key in found.items():
            keys[number] = np.frombuffer(key, np.uint8)
            rows[number] = row_of[key]
            if key in reason_of:
                problems[number] = reason_of[key]
    lost = rows < 0
    lost[list(problems)] = False
    return _Known(keys=keys, rows=rows, problems=problems, missing=np.flatnonzero(lost))


def _stamp(pictures: PictureSet, number: int) -> tuple[bytes, int, int]:
    """Return a picture's place, size and time of change; without them, the set that it is of and its key in it."""
    place = getattr(pictures, "place", None)
    if place is None:
        name, size_bytes, changed_ns = f"{pictures.digest}/{pictures.keys[number]}", -1, 0
    else:
        name, size_bytes, changed_ns = place(number)
    return name.encode("utf-8", "surrogateescape"), size_bytes, changed_ns


def _fill(
    store: KeyedRows,
    pictures: PictureSet,
    missing: NDArray[np.int64],
    spec: Preprocessing,
    encode: Encoder,
    batch: int,
    workers: int,
) -> dict[int, str]:
    """Read the pictures that are missing, and encode those whose bytes are new; return why some cannot be read."""
    blank = torch.zeros(1, spec.size, spec.size, 3, dtype=torch.uint8)
    shapes = [None if part is None else tuple(part.shape[1:]) for part in encode(blank)]
    progress = PassProgress("teacher cache:", total=len(missing), first=0)
    unreadable: dict[int, str] = {}
    seen: set[bytes] = set()  # of this pass
    aside = 0
    job = _ReadJob(pictures=pictures, numbers=missing, spec=spec, batch=batch)
    starts = range(0, len(missing), batch)
    with store.write(shapes, most=len(missing)) as writer:
        for start, found in zip(starts, run_jobs(job, starts, workers=workers), strict=True):
            unreadable |= found.unreadable
            before = store.find(found.keys)
            new = [
                place
                for place, key in enumerate(found.keys)
                if before[place] < 0 and key not in seen and (key not in found.keys[:place])
            ]
            seen.update(found.keys)
            decoded = [place for place in new if place not in found.problems]
            if decoded:
                first = pictures.keys[int(found.numbers[decoded[0]])]
                _write_outputs(writer, [found.keys[i] for i in decoded], encode(found.pixels[decoded]), first)
            for place in new:
                if place in found.problems:
                    reason = found.problems[place]
                    writer.note("INSERT OR IGNORE INTO problems VALUES (?, ?)", (found.keys[place], reason))
            for stamp, key in zip(found.stamps, found.keys, strict=True):
                writer.note("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?)", (*stamp, key))
            aside += len(found.problems) + len(found.unreadable)
            writer.flush_when_due()
            progress.update(min(start + batch, len(missing)), aside)
    return unreadable


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A batch of pictures that were read: b of them, without those that could not be.

    Attributes:
        numbers: [b].
        keys: b SHA-256 of the files.
        stamps: b places with size and time of change, from before they were read.
        pixels: [b, S, S, 3], uint8.
        problems: place in the batch -> why it cannot be decoded; its pixels mean nothing.
        unreadable: number -> why its file cannot be read.
    """

    numbers: list[int]
    keys: list[bytes]
    stamps: list[tuple[bytes, int, int]]
    pixels: Tensor
    problems: dict[int, str]
    unreadable: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ReadJob:
    """Start of a batch among the numbers -> what was read of it."""

    pictures: PictureSet
    numbers: NDArray[np.int64]
    spec: Preprocessing
    batch: int

    def __call__(self, start: int) -> _Found:
        some = self.numbers[start : start + self.batch].tolist()
        pixels = torch.zeros(len(some), self.spec.size, self.spec.size, 3, dtype=torch.uint8)
        found = _Found(numbers=[], keys=[], stamps=[], pixels=pixels, problems={}, unreadable={})
        for number in some:
            stamp, name = _stamp(self.pictures, number), self.pictures.keys[number]
            try:
                content = self.pictures.read(number)
            except (ImageError, OSError) as exc:
                found.unreadable[number] = str(exc)
                continue
            place = len(found.keys)
            found.numbers.append(number)
            found.keys.append(hashlib.sha256(content).digest())
            found.stamps.append(stamp)
            try:
                pixels[place] = torch.from_numpy(np.array(preprocess(decode_image(content, name=name), self.spec)))
            except ImageError as exc:
                found.problems[place] = str(exc)
        return found


def _write_outputs(writer: Writer, keys: Sequence[bytes], outputs: tuple[Tensor, Tensor | None], first: str) -> None:
    values = [output.float().cpu().numpy() for output in outputs if output is not None]
    # Patches are kept as float16, in which large ones are infinite.
    values[1:] = [array.astype(np.float16) for array in values[1:]]
    if not all(np.isfinite(array).all() for array in values):
        raise CacheError(
            f"the foundation gives features that are not finite in the batch that starts at {first}: take "
            "precision bf16 or fp32, or look at its weights"
        )
    writer.append(keys, values)


def _make_view(store: KeyedRows, pictures: PictureSet, known: _Known, unreadable: dict[int, str]) -> TeacherCache:
    """Pick the set's rows, and write down which pictures have none."""
    kept = np.flatnonzero(known.rows >= 0).astype(np.int64)
    reasons = {int(number): unreadable.get(int(number), "cannot be read") for number in known.missing} | known.problems
    aside = [(number, pictures.keys[number], reasons[number]) for number in sorted(reasons)]
    path = store.folder / "sets" / pictures.digest[:_KEY_LENGTH] / QUARANTINE_NAME
    write_quarantine(path, [*((None, key, reason) for key, reason in pictures.problems), *aside])
    problems = [*pictures.problems, *((key, reason) for _, key, reason in aside)]
    if problems:
        _log.warning("%d pictures cannot be used: see %s", len(problems), path)
    if not len(kept):
        raise DataError(f"none of {len(pictures)} pictures can be decoded: {path} says why")
    embedding, patches = store.read()
    assert embedding is not None
    rows = known.rows[kept]
    return TeacherCache(
        folder=store.folder,
        embedding=pick_rows(embedding, rows),
        patches=None if patches is None else pick_rows(patches, rows),
        kept=kept,
        problems=problems,
        identities=known.keys[kept],
    )
