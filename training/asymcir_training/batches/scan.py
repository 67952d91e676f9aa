"""One pass over all pictures that finds those that can be decoded, and can be interrupted.

Notation: n pictures.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import ImageError, decode_image
from asymcir_common.files import write_atomically
from numpy.typing import NDArray

from asymcir_training.batches.workers import run_jobs
from asymcir_training.errors import DataError
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.runs.durations import describe_time

QUARANTINE_NAME = "quarantine.jsonl"
_STATE_NAME = "scan.json"
_LOCK_NAME = "lock"

_PICTURES_A_JOB = 64
_SAVE_EVERY_S = 5.0
_LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """Which pictures can be trained on.

    Attributes:
        kept: their numbers, ascending.
        problems: (key, reason) of the others.
    """

    kept: NDArray[np.int64]
    problems: list[tuple[str, str]]


class Quarantine:
    """A JSON-lines file of the pictures that a pass put aside, that grows with the pass.

    A line is {"number", "key", "reason"}; those known before the pass have the number null.
    """

    def __init__(self, path: Path, *, done: int, before: Sequence[tuple[str, str]]) -> None:
        """Go on with a pass that has `done` pictures behind it: lines of later ones come again, and are cut.

        Args:
            path: the file.
            done: pictures that the pass is done with.
            before: (key, reason) known before the pass.
        """
        self._path = path
        self.numbers: list[int] = []
        self.problems = list(before)
        lines = [_quarantine_line(None, key, reason) for key, reason in before]
        for record in _read_lines(path) if done else ():
            if record["number"] is not None and record["number"] < done:
                self._take(record["number"], record["key"], record["reason"])
                lines.append(_quarantine_line(record["number"], record["key"], record["reason"]))
        text = "".join(lines)
        # A complete pass is only read, so it may lie where nothing can be written.
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomically(path, text)

    def add(self, found: Sequence[tuple[int, str, str]]) -> None:
        """Append (number, key, reason) of pictures; they are on the disk when this returns."""
        if not found:
            return
        for number, key, reason in found:
            self._take(number, key, reason)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(_quarantine_line(*problem) for problem in found)
            stream.flush()
            os.fsync(stream.fileno())

    def keep(self, total: int) -> NDArray[np.int64]:
        """Return the numbers below `total` that were not put aside, ascending."""
        kept = np.ones(total, bool)
        kept[self.numbers] = False
        return np.flatnonzero(kept).astype(np.int64)

    def report(self) -> None:
        """Warn, once, if there is anything in it."""
        if self.problems:
            _log.warning("%d pictures cannot be used: see %s", len(self.problems), self._path)

    def _take(self, number: int, key: str, reason: str) -> None:
        self.numbers.append(number)
        self.problems.append((key, reason))


class PassProgress:
    """Logs how far a long pass is, its rate and the time left."""

    def __init__(self, what: str, *, total: int, first: int, of: str = "pictures") -> None:
        self._what, self._total, self._first, self._of = what, total, first, of
        self._started_s = self._logged_s = time.monotonic()

    def update(self, done: int, problems: int | None = None) -> None:
        """Report; logs only every ten seconds, and at the end."""
        now_s = time.monotonic()
        if now_s - self._logged_s < _LOG_EVERY_S and done < self._total:
            return
        self._logged_s = now_s
        rate = (done - self._first) / max(now_s - self._started_s, 1e-9)
        left_s = (self._total - done) / max(rate, 1e-9)
        _log.info(
            "%s %d/%d %s, %.1f/s, %s left%s",
            self._what,
            done,
            self._total,
            self._of,
            rate,
            describe_time(left_s),
            "" if problems is None else f", {problems} put aside",
        )


def write_quarantine(path: Path, problems: Sequence[tuple[int | None, str, str]]) -> None:
    """Write (number, key, reason) of pictures that a pass put aside, as `Quarantine` does; unchanged, it is left."""
    text = "".join(_quarantine_line(*problem) for problem in problems)
    if path.is_file() and path.read_bytes() == text.encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


@contextlib.contextmanager
def only_one_process(folder: Path, what: str) -> Iterator[None]:
    """Let one process at a time work in a folder; the others wait, and then find the work done.

    The lock is the operating system's, so it goes with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_NAME).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that makes %s in %s", what, folder)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def scan_pictures(pictures: PictureSet, *, folder: str | Path, workers: int = 0) -> Scan:
    """Decode every picture once, and list those that cannot be.

    What was found is kept below the folder, so that the same pictures are scanned once; an interrupted scan goes on.

    Args:
        pictures: which.
        folder: what is found goes to FOLDER/scan-DIGEST: scan.json, quarantine.jsonl.
        workers: processes that decode; 0: none beside this one.

    Raises:
        DataError: not one can be decoded, or the folder's scan is damaged.
    """
    folder = Path(folder)
    place = folder / f"scan-{pictures.digest[:16]}"
    total = len(pictures)
    with only_one_process(place, "the scan"):
        done = _read_done(place / _STATE_NAME, pictures)
        quarantine = Quarantine(place / QUARANTINE_NAME, done=done, before=pictures.problems)
        saved_s = time.monotonic()
        progress = PassProgress("scanned", total=total, first=done)
        starts = range(done, total, _PICTURES_A_JOB)
        for start, found in zip(starts, run_jobs(_ScanJob(pictures), starts, workers=workers), strict=True):
            quarantine.add(found)
            done = min(start + _PICTURES_A_JOB, total)
            if done == total or time.monotonic() - saved_s > _SAVE_EVERY_S:
                _write_done(place / _STATE_NAME, pictures, done)
                saved_s = time.monotonic()
            progress.update(done, len(quarantine.problems))
    kept = quarantine.keep(total)
    if not len(kept):
        raise DataError(f"none of {total} pictures can be decoded: {place / QUARANTINE_NAME} says why")
    quarantine.report()
    return Scan(kept=kept, problems=quarantine.problems)


@dataclass(frozen=True, slots=True)
class _ScanJob:
    """First number of a job -> (number, key, reason) of those of its pictures that cannot be decoded."""

    pictures: PictureSet

    def __call__(self, start: int) -> list[tuple[int, str, str]]:
        found = []
        for number in range(start, min(start + _PICTURES_A_JOB, len(self.pictures))):
            try:
                decode_image(self.pictures.read(number), name=self.pictures.keys[number])
            except ImageError as exc:
                found.append((number, self.pictures.keys[number], str(exc)))
        return found


def _read_done(path: Path, pictures: PictureSet) -> int:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["pictures"] != pictures.digest or not 0 <= record["done"] <= len(pictures):
            raise ValueError("it is of other pictures")
        return int(record["done"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise DataError(f"the scan {path} is damaged ({exc}): remove {path.parent} and scan again") from exc


def _write_done(path: Path, pictures: PictureSet, done: int) -> None:
    write_atomically(path, json.dumps({"pictures": pictures.digest, "count": len(pictures), "done": done}) + "\n")


def _quarantine_line(number: int | None, key: str, reason: str) -> str:
    # Names that are no UTF-8 come as lone surrogates, which only the escaped form can carry.
    return json.dumps({"number": number, "key": key, "reason": reason}, ensure_ascii=not _is_utf8(key + reason)) + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        # The last line is cut off where writing it was interrupted; it is of a later picture then.
        lines = path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as exc:
        raise DataError(f"{path} is damaged ({exc}): remove {path.parent} and begin again") from exc
