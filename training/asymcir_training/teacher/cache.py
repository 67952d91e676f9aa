"""What the frozen visual tower says about every picture, on the disk: computed once, for every run.

An entry is a folder ROOT/KEY:

    cache.json          what it was made of and how far it is
    embedding.f32       [rows, E], image features, not normalised
    patches.f16         [rows, P, E], patch features, not normalised (if asked for)
    quarantine.jsonl    the pictures that cannot be decoded, and so have no row

Rows follow the pictures' order. The files have their full size from the start, so that a disk that is too small says
so at once and not after a night.

Notation: n pictures, b batch, E joint-embedding width, P patches, S picture side.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_common import ImageError, Preprocessing
from asymcir_common.files import write_atomically
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.batches.scan import QUARANTINE_NAME, PassProgress, Quarantine, only_one_process
from asymcir_training.batches.workers import run_jobs
from asymcir_training.errors import CacheError, DataError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.teacher.encoder import Encoder, choose_encoder
from asymcir_training.teacher.row_files import NO_ROOM, RowFile

_FORMAT, _VERSION = "asymcir-teacher-cache", 1
_STATE_NAME = "cache.json"
_FILES = (("embedding.f32", np.float32), ("patches.f16", np.float16))
_KEY_LENGTH = 16
_FLUSH_EVERY_S = 10.0
_PRECISIONS = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCache:
    """The frozen visual tower's outputs, memory-mapped.

    Attributes:
        folder: of the entry.
        embedding: [rows, E], float32, not normalised.
        patches: [rows, P, E], float16, not normalised, or None.
        kept: [rows], the number of each row's picture, ascending.
        problems: (key, reason) of the pictures that have no row.
    """

    folder: Path
    embedding: NDArray[np.float32]
    patches: NDArray[np.float16] | None
    kept: NDArray[np.int64]
    problems: list[tuple[str, str]]


def visual_digest(foundation: Foundation) -> str:
    """Name a foundation's visual tower: a digest of its weights, how it computes, and how pictures come in."""
    return foundation.visual_digest()


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
    """Open the entry of this foundation and these pictures, making it, or the rest of it, where it is not complete.

    Several processes may call this at once: one makes the entry, the others wait for it.

    Args:
        root: where entries are.
        foundation: frozen; moved to the device.
        pictures: which; those that cannot be decoded are put aside.
        patches: whether patch features are wanted too.
        batch: pictures of one forward pass.
        workers: processes that decode; 0: none beside this one.
        device: what to compute on.
        autocast: bfloat16 or float16 for mixed precision, None for float32. Another precision is another entry.

    Raises:
        CacheError: no room for it, an entry of another foundation or other pictures, or a damaged one; features that
            are not finite.
        DataError: not one picture can be decoded.
        FoundationError: patches of a tower that has none.
    """
    if autocast not in _PRECISIONS:
        raise CacheError(f"expected the precision float32 (None), bfloat16 or float16, got {autocast}")
    identity = {
        "format": _FORMAT,
        "version": _VERSION,
        "foundation": foundation.name,
        "visual_digest": visual_digest(foundation),
        "preprocessing": foundation.preprocessing.to_json(),
        "precision": _PRECISIONS[autocast],
        "pictures": pictures.digest,
        "count": len(pictures),
        "patches": patches,
    }
    # The name is how the foundation was asked for: its weights decide, not where they came from.
    named = {name: value for name, value in identity.items() if name != "foundation"}
    folder = root / digest(weights={}, facts=named)[:_KEY_LENGTH]
    state = _read_state(folder, identity)
    if not state.get("complete"):
        with only_one_process(folder, "the teacher cache"):
            state = _read_state(folder, identity)
            if not state.get("complete"):
                encode = choose_encoder(foundation, patches=patches, device=torch.device(device), autocast=autocast)
                with _explain_full_disk(folder):
                    state = _fill(folder, state, pictures, foundation.preprocessing, encode, batch, workers)
    quarantine = Quarantine(folder / QUARANTINE_NAME, done=len(pictures), before=pictures.problems)
    quarantine.report()
    return _open_entry(folder, state, quarantine)


def _fill(
    folder: Path,
    state: dict[str, Any],
    pictures: PictureSet,
    spec: Preprocessing,
    encode: Encoder,
    batch: int,
    workers: int,
) -> dict[str, Any]:
    """Encode the pictures that have no row yet; return the state of the complete entry."""
    blank = torch.zeros(1, spec.size, spec.size, 3, dtype=torch.uint8)
    shapes = [None if part is None else list(part.shape[1:]) for part in encode(blank)]
    if state.setdefault("shapes", shapes) != shapes:
        raise _damaged(folder, f"it has outputs of the shapes {state['shapes']}, the foundation's are {shapes}")
    done, rows, total = state.setdefault("done", 0), state.setdefault("rows", 0), len(pictures)
    quarantine = Quarantine(folder / QUARANTINE_NAME, done=done, before=pictures.problems)
    if rows != done - len(quarantine.numbers):
        raise _damaged(
            folder, f"{done} pictures are done, {len(quarantine.numbers)} of them put aside, {rows} have rows"
        )
    progress = PassProgress("teacher cache:", total=total, first=done)
    flushed_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(RowFile(folder / name, shape, dtype))
            for (name, dtype), shape in zip(_FILES, shapes, strict=True)
            if shape is not None
        ]
        _allocate(folder, files, rows=rows, total=total)
        starts = range(done, total, batch)
        job = _DecodeJob(pictures=pictures, spec=spec, batch=batch)
        for start, (pixels, problems) in zip(starts, run_jobs(job, starts, workers=workers), strict=True):
            quarantine.add(problems)
            if len(pixels):
                _write_outputs(files, encode(pixels), rows, pictures.keys[start])
            done, rows = min(start + batch, total), rows + len(pixels)
            if time.monotonic() - flushed_s > _FLUSH_EVERY_S:
                for file in files:
                    file.flush()
                # Only now: what `done` counts must be there after a power cut too.
                _write_state(folder, state | {"done": done, "rows": rows})
                flushed_s = time.monotonic()
            progress.update(done, len(quarantine.problems))
        for file in files:
            file.cut(rows)
            file.flush()
        state |= {"done": done, "rows": rows, "complete": rows > 0}
        _write_state(folder, state)
    if not rows:
        raise DataError(f"none of {total} pictures can be decoded: {folder / QUARANTINE_NAME} says why")
    return state


@dataclass(frozen=True, kw_only=True, slots=True)
class _DecodeJob:
    """First number of a batch -> pixels [b, S, S, 3] uint8 of those that can be decoded, and why the others cannot."""

    pictures: PictureSet
    spec: Preprocessing
    batch: int

    def __call__(self, start: int) -> tuple[Tensor, list[tuple[int, str, str]]]:
        numbers = range(start, min(start + self.batch, len(self.pictures)))
        pixels = torch.empty(len(numbers), self.spec.size, self.spec.size, 3, dtype=torch.uint8)
        problems = []
        for number in numbers:
            try:
                decoded = self.pictures.decode(number, self.spec)
            except ImageError as exc:
                problems.append((number, self.pictures.keys[number], str(exc)))
                continue
            pixels[number - start - len(problems)] = torch.from_numpy(np.array(decoded))
        return pixels[: len(numbers) - len(problems)], problems


def _write_outputs(files: Sequence[RowFile], outputs: tuple[Tensor, Tensor | None], row: int, first: str) -> None:
    for file, output in zip(files, (output for output in outputs if output is not None), strict=True):
        values = output.float().cpu().numpy().astype(file.dtype)
        if not np.isfinite(values).all():
            raise CacheError(
                f"the foundation gives features that are not finite in the batch that starts at {first}: take "
                "precision bf16 or fp32, or look at its weights"
            )
        file.write(row, values)


def _allocate(folder: Path, files: Sequence[RowFile], *, rows: int, total: int) -> None:
    """Give the files their full size, or say what is missing."""
    for file in files:
        if file.size_bytes < rows * file.row_bytes:
            raise _damaged(
                folder, f"{file.path.name} has {file.size_bytes} bytes, {rows} rows have {rows * file.row_bytes}"
            )
    needed_bytes = sum(max(0, total * file.row_bytes - file.allocated_bytes) for file in files)
    free_bytes = shutil.disk_usage(folder).free
    before = [file.size_bytes for file in files]
    try:
        if needed_bytes > free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for file in files:
            file.allocate(total)
    except OSError as exc:
        if exc.errno not in NO_ROOM:
            raise
        for file, size_bytes in zip(files, before, strict=True):
            file.cut_bytes(size_bytes)
        raise CacheError(
            f"no room for the teacher cache in {folder}: it needs {needed_bytes:,} bytes more for {total:,} pictures, "
            f"{free_bytes:,} are free; {rows:,} rows are kept. Make room, or put the cache on another disk"
        ) from exc


@contextlib.contextmanager
def _explain_full_disk(folder: Path) -> Iterator[None]:
    """Name the way out where the disk fills up meanwhile, on a file system that cannot reserve room."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in NO_ROOM:
            raise
        raise CacheError(
            f"the disk of {folder} is full ({shutil.disk_usage(folder).free:,} bytes are free); what was written so "
            "far is kept. Make room and start again"
        ) from exc


def _read_state(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what cache.json says, or a new state where there is none.

    Raises:
        CacheError: it is of something else, or damaged.
    """
    path = folder / _STATE_NAME
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {name: state[name] for name in identity}
        whole = state["done"] >= state["rows"] >= 0 and len(state["shapes"]) == len(_FILES)
    except FileNotFoundError:
        return dict(identity)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise _damaged(folder, f"{_STATE_NAME} cannot be read: {type(exc).__name__}: {exc}") from exc
    if not whole:
        raise _damaged(folder, f"{_STATE_NAME} contradicts itself")
    differing = [name for name in identity if name != "foundation" and found[name] != identity[name]]
    if differing:
        raise CacheError(
            f"the teacher cache {folder} is of another "
            + " and of another ".join(_describe_difference(name, found, identity) for name in differing)
            + ": pass another cache folder, or remove this entry"
        )
    return state


def _describe_difference(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if name == "visual_digest":
        sides = (f"{side['foundation']} ({str(side[name])[:12]})" for side in (found, wanted))
        return "foundation, {} instead of {}".format(*sides)
    if name == "pictures":
        sides = (f"{side['count']} pictures ({str(side[name])[:12]})" for side in (found, wanted))
        return "set of pictures, {} instead of {}".format(*sides)
    return f"{name}, {found[name]} instead of {wanted[name]}"


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    write_atomically(folder / _STATE_NAME, json.dumps(state, indent=2, ensure_ascii=False) + "\n")


def _open_entry(folder: Path, state: Mapping[str, Any], quarantine: Quarantine) -> TeacherCache:
    kept = quarantine.keep(state["count"])
    if len(kept) != state["rows"]:
        raise _damaged(folder, f"{QUARANTINE_NAME} leaves {len(kept)} pictures, {state['rows']} have rows")
    opened: list[NDArray[Any] | None] = []
    for (name, dtype), shape in zip(_FILES, state["shapes"], strict=True):
        if shape is None:
            opened.append(None)
            continue
        path, full = folder / name, (state["rows"], *shape)
        expected_bytes = int(np.prod(full)) * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != expected_bytes:
            raise _damaged(folder, f"expected {name} of {expected_bytes} bytes")
        opened.append(np.memmap(path, dtype=dtype, mode="r", shape=full))
    embedding, patches = opened
    assert embedding is not None
    return TeacherCache(folder=folder, embedding=embedding, patches=patches, kept=kept, problems=quarantine.problems)


def _damaged(folder: Path, why: str) -> CacheError:
    return CacheError(f"the teacher cache {folder} is damaged ({why}): remove that folder, and it is made anew")
