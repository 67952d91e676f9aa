"""The teacher cache: outputs of the frozen visual tower, computed once for each picture and shared by sets and runs.

A store (see keyed_rows.py) ROOT/pictures-KEY, KEY of the visual tower, its preprocessing, the precision, and whether
patches are kept:

    embedding.f32       [rows, E], image features, not normalised
    patches.f16         [rows, P, E], patch features, not normalised (if asked for)
    sets/DIGEST         quarantine.jsonl: the pictures of one set that cannot be decoded, and so have no row

The index also has, beside the rows' keys, which key was found at a place, and why a picture cannot be decoded: that is
of one decoder, and another version of it tries again. The key of a picture is the SHA-256 of its file, whatever its
name. A file whose place, size and time of change are
unchanged is not read again. Disk space for all pictures of a set is reserved first, so that a disk that is too small is
an error before the computation starts.

Notation: n pictures, b batch, E joint-embedding width, P patches, S picture side.
"""

import errno
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from asymcir_common.pictures import MAX_PIXELS
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.batches.scan import QUARANTINE_NAME, PassProgress, only_one_process, write_quarantine
from asymcir_training.batches.workers import run_jobs
from asymcir_training.engine.execution import PickedRows, pick_rows
from asymcir_training.errors import CacheError, DataError
from asymcir_training.foundation.model import Foundation
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.teacher.encoder import Encoder, choose_encoder
from asymcir_training.teacher.keyed_rows import KeyedRows, Part, Writer
from asymcir_training.teacher.vectors import store_folder

_WHAT = "the teacher cache"
_PARTS = (Part(name="embedding.f32", dtype=np.float32), Part(name="patches.f16", dtype=np.float16))
_SCHEMA = """
CREATE TABLE IF NOT EXISTS problems (key BLOB PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (
    place BLOB PRIMARY KEY, size_bytes INTEGER NOT NULL, changed_ns INTEGER NOT NULL, key BLOB NOT NULL
) WITHOUT ROWID;
"""
# The first reason of a decoder stays: it names the picture, which has other names elsewhere.
_REFUSE = """
INSERT INTO problems VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET reason = excluded.reason WHERE instr(problems.reason, ?) != 1
"""
_KEY_LENGTH = 16
_KEY_BYTES = 32
_NUMBERS_AT_ONCE = 10_000
_DECODER = f"Pillow {PIL.__version__} up to {MAX_PIXELS} pixels"
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_PRECISIONS = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Usable:
    """Which pictures of a set have rows, as one process found it, for the others of its run; see `TeacherCache`."""

    kept: NDArray[np.int64]
    problems: list[tuple[str, str]]
    identities: NDArray[np.uint8]


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

    @property
    def usable(self) -> Usable:
        """What the other processes of a run need, to open the same rows."""
        return Usable(kept=self.kept, problems=self.problems, identities=self.identities)


def build_teacher_cache(
    root: str | Path,
    foundation: Foundation,
    pictures: PictureSet,
    *,
    patches: bool,
    batch: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    autocast: torch.dtype | None = None,
    usable: Usable | None = None,
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
        usable: what another process of the run found, so that all have the same rows; None: find it here.

    Raises:
        CacheError: no room for it, a store of another foundation, or a damaged one, or one that lacks pictures and
            cannot be written; features that are not finite; pictures of `usable` that are not found here.
        DataError: not one picture can be decoded.
        FoundationError: patches of a tower that has none.
    """
    root = Path(root)
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
    folder = store_folder(root, "pictures", facts)
    store = _open_store(folder, facts)
    known = _look_up(store, pictures, usable)
    unreadable: dict[int, str] = {}
    if len(known.missing):
        try:
            with only_one_process(folder, _WHAT):
                store = _open_store(folder, facts)  # as the process before left it
                known = _look_up(store, pictures, usable)
                if len(known.missing):
                    encode = choose_encoder(foundation, patches=patches, device=torch.device(device), autocast=autocast)
                    unreadable = _fill(store, pictures, known.missing, foundation.preprocessing, encode, batch, workers)
                    known = _look_up(store, pictures, usable)
        except OSError as exc:
            if exc.errno not in _READ_ONLY:
                raise
            unreadable = known.outdated  # nothing is new there: it can be opened as it is
            new = [int(number) for number in known.missing if int(number) not in unreadable]
            if new:
                raise CacheError(
                    f"{_WHAT} {folder} lacks {len(new)} pictures, such as {pictures.keys[new[0]]}, and cannot be "
                    f"written ({exc.strerror}): make it writable, or pass another cache folder or no such pictures"
                ) from exc
    if usable is None:
        return _make_view(store, known, _put_aside(store, pictures, known, unreadable))
    if len(known.missing):
        number = int(known.missing[0])
        raise CacheError(
            f"{len(known.missing)} pictures that the main process has read are not to be had in another one, such as "
            f"{pictures.keys[number]} ({unreadable.get(number, 'it is another one here')}): start again"
        )
    return _make_view(store, known, usable.problems)


def _open_store(folder: Path, facts: dict[str, Any]) -> KeyedRows:
    return KeyedRows(folder, facts, _PARTS, what=_WHAT, schema=_SCHEMA)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What a store knows of n pictures.

    Attributes:
        keys: [n, 32], uint8, zero where the picture was not seen yet.
        rows: [n], -1 without one.
        problems: number -> why it cannot be decoded.
        outdated: number -> why another version of the decoder could not decode it.
        missing: numbers that were not seen yet, or have neither row nor problem.
    """

    keys: NDArray[np.uint8]
    rows: NDArray[np.int64]
    problems: dict[int, str]
    outdated: dict[int, str]
    missing: NDArray[np.int64]


def _look_up(store: KeyedRows, pictures: PictureSet, usable: Usable | None) -> _Known:
    """Find what the store knows of pictures by where they are, their size and their time of change; or by `usable`."""
    total = len(pictures)
    keys, rows = np.zeros((total, _KEY_BYTES), np.uint8), np.full(total, -1, np.int64)
    problems: dict[int, str] = {}
    outdated: dict[int, str] = {}
    if usable is not None:
        keys[usable.kept] = usable.identities
        rows[usable.kept] = store.find([key.tobytes() for key in usable.identities])
        missing = usable.kept[rows[usable.kept] < 0]
        return _Known(keys=keys, rows=rows, problems=problems, outdated=outdated, missing=missing)
    for start in range(0, total, _NUMBERS_AT_ONCE):
        stamps = {n: _stamp(pictures, n) for n in range(start, min(start + _NUMBERS_AT_ONCE, total))}
        sql = "SELECT place, size_bytes, changed_ns, key FROM places WHERE place IN ({})"
        seen = {(place, *rest): key for place, *rest, key in store.query(sql, [stamp[0] for stamp in stamps.values()])}
        found = {number: seen[stamp] for number, stamp in stamps.items() if stamp in seen}
        asked = list(dict.fromkeys(found.values()))
        row_of = dict(zip(asked, store.find(asked).tolist(), strict=True))
        rowless = [key for key, row in row_of.items() if row < 0]
        # The decoder stands on a line of its own; a store of before has none.
        asked_problems = store.query("SELECT key, reason FROM problems WHERE key IN ({})", rowless)
        refused = {key: text.partition("\n") for key, text in asked_problems}
        for number, key in found.items():
            keys[number] = np.frombuffer(key, np.uint8)
            rows[number] = row_of[key]
            if key in refused:
                decoder, _, reason = refused[key]
                (problems if decoder == _DECODER else outdated)[number] = reason or decoder
    lost = rows < 0
    lost[list(problems)] = False
    return _Known(keys=keys, rows=rows, problems=problems, outdated=outdated, missing=np.flatnonzero(lost))


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
                    reason = f"{_DECODER}\n{found.problems[place]}"
                    writer.note(_REFUSE, (found.keys[place], reason, f"{_DECODER}\n"))
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
    values: list[NDArray[Any]] = []
    for part, output in zip(_PARTS, outputs, strict=True):
        if output is None:
            continue
        name = Path(part.name).stem
        array = output.float().cpu().numpy()
        if not np.isfinite(array).all():
            raise CacheError(
                f"the foundation gives features ({name}) that are not finite in the batch that starts at {first}: take "
                "precision bf16 or fp32, or look at its weights"
            )
        with np.errstate(over="ignore"):
            values.append(array.astype(part.dtype))
        if not np.isfinite(values[-1]).all():
            raise CacheError(
                f"the foundation gives features ({name}) up to {np.abs(array).max():,.0f} in the batch that starts at "
                f"{first}, which are not finite in float16, as {part.name} keeps them at every precision: train what "
                "needs no patches, or take another foundation"
            )
    writer.append(keys, values)


def _put_aside(
    store: KeyedRows, pictures: PictureSet, known: _Known, unreadable: dict[int, str]
) -> list[tuple[str, str]]:
    """Write down which pictures have no row, and return (key, reason) of them."""
    changed = "it changed while it was read: start again"
    reasons = {int(number): unreadable.get(int(number), changed) for number in known.missing} | known.problems
    aside = [(number, pictures.keys[number], reasons[number]) for number in sorted(reasons)]
    path = store.folder / "sets" / pictures.digest[:_KEY_LENGTH] / QUARANTINE_NAME
    problems = [*pictures.problems, *((key, reason) for _, key, reason in aside)]
    try:
        write_quarantine(path, [*((None, key, reason) for key, reason in pictures.problems), *aside])
        where = f"{path} says why"
    except OSError as exc:
        if exc.errno not in _READ_ONLY:
            raise
        where = f"{path} cannot be written ({exc.strerror})"
        if problems:
            where += f"; the first is {problems[0][0]}: {problems[0][1]}"
    if problems:
        _log.warning("%d pictures cannot be used: %s", len(problems), where)
    if not (known.rows >= 0).any():
        raise DataError(f"none of {len(pictures)} pictures can be decoded: {where}")
    return problems


def _make_view(store: KeyedRows, known: _Known, problems: list[tuple[str, str]]) -> TeacherCache:
    """Pick the set's rows."""
    kept = np.flatnonzero(known.rows >= 0).astype(np.int64)
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
