"""The changes to a snapshot in memory: added pictures with their vectors, removed rows, changed metadata.

A `Delta` never changes. The next one is made from it and from what was written since (`ChangesReader.advance`), which
costs what was written, not what is there.
"""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import BundleError
from numpy.typing import NDArray

from asymcir_server.gallery.changes.table import guard_row, open_readable, waits_in_log
from asymcir_server.gallery.indexes import RemovedRows

_ADVICE = "`asymcir gallery rollback --discard-changes` drops the changes, or copy the gallery again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is said of a row.

    Attributes:
        id: of the picture.
        item: what it shows, where it names that.
        metadata: JSON values.
        digest: of its file; None for a row of the snapshot, whose digest does not change.
    """

    id: str
    item: str | None
    metadata: Mapping[str, Any]
    digest: bytes | None = None


@dataclass(kw_only=True, slots=True)
class _Buffer:
    """Vectors of added rows, with room to grow; a `Delta` sees the first of them."""

    vectors: NDArray[np.float32]
    used: int = 0


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The changes to a snapshot as of one transaction.

    Attributes:
        size: rows of the snapshot; the rows of added pictures follow.
        generation: which file, of those that the reader met.
        epoch, change: which transaction.
        rows: [M], ascending, of all pictures ever added, those removed since included.
        alive: places in `rows` of those that are still there, ascending.
        added: row -> what is said of it, of those that are still there.
        ids: id -> row of these.
        removed: rows of the snapshot that are gone; None where none are.
        updated: row of the snapshot -> what is said of it now.
    """

    size: int
    width: int
    generation: int = 0
    epoch: int = 0
    change: int = 0
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    alive: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    added: Mapping[int, Record] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)
    removed: RemovedRows | None = None
    updated: Mapping[int, Record] = field(default_factory=dict)
    buffer: _Buffer | None = None

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[M, E], of `rows`."""
        if self.buffer is None:
            return np.empty((0, self.width), np.float32)
        return self.buffer.vectors[: len(self.rows)]

    @property
    def is_empty(self) -> bool:
        """Whether the snapshot alone answers."""
        return not self.added and self.removed is None and not self.updated

    @property
    def count(self) -> int:
        """Pictures that are there, those of the snapshot included."""
        return self.size + len(self.added) - (0 if self.removed is None else len(self.removed))


def count_changes(path: Path) -> tuple[int, int, int]:
    """Count the pictures added, the snapshot's rows removed, and those with other metadata.

    Raises:
        BundleError: the file cannot be read.
    """
    if not path.exists():
        return 0, 0, 0
    try:
        with contextlib.closing(open_readable(path)[0]) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone() is None:
                return 0, 0, 0
            size = "(SELECT value FROM state WHERE key = 'size')"
            added, removed, updated = connection.execute(
                "SELECT (SELECT COUNT(*) FROM pictures), "
                f"(SELECT COUNT(*) FROM removed WHERE row < {size}), (SELECT COUNT(*) FROM updated)"
            ).fetchone()
    except sqlite3.Error as exc:
        raise BundleError(f"cannot read the changes {path}: {exc}; {_ADVICE}") from exc
    return added, removed, updated


class ChangesReader:
    """Reads the changes to one snapshot, while others write them. Safe to share between threads."""

    def __init__(self, path: Path, base: str, size: int, width: int) -> None:
        """Prepare; the file need not be there yet.

        Args:
            path: of the file.
            base: digest of the snapshot's manifest.
            size: rows of the snapshot.
            width: E.
        """
        self._path, self._base, self._size, self._width = path, base, size, width
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, ...] | None = None
        self._generation = 0

    def advance(self, delta: Delta | None = None) -> Delta:
        """Return the changes as they are now.

        Args:
            delta: as they were; None reads all of them. It is returned itself where nothing was written.

        Raises:
            BundleError: the file is damaged, or belongs to another snapshot.
        """
        delta = delta or Delta(size=self._size, width=self._width)
        with self._lock:
            try:
                if not self._open():
                    return delta
                assert self._connection is not None
                self._connection.execute("BEGIN")  # all that follows sees one transaction's end
                try:
                    return self._read(self._connection, delta)
                finally:
                    self._connection.execute("ROLLBACK")
            except (sqlite3.Error, ValueError, TypeError, KeyError, OSError) as exc:
                raise BundleError(f"cannot read the changes {self._path}: {exc}; {_ADVICE}") from exc

    def thumbnail(self, row: int) -> bytes | None:
        """Return the thumbnail of an added row, None where there is none."""
        with self._lock:
            if self._connection is None:
                return None
            found = self._connection.execute("SELECT thumbnail FROM pictures WHERE row = ?", (row,)).fetchone()
        return None if found is None or found[0] is None else bytes(found[0])

    def find(self, digest: bytes, encoder: str) -> tuple[NDArray[np.float32], bytes | None, int | None] | None:
        """Return vector, thumbnail and hash of an added picture with this file, by the same encoder; None for none."""
        with self._lock:
            if not self._open() or self._connection is None:
                return None
            found = self._connection.execute(
                "SELECT vector, thumbnail, picture_hash FROM pictures WHERE digest = ? AND encoder = ? LIMIT 1",
                (digest, encoder),
            ).fetchone()
        return None if found is None else (np.frombuffer(found[0], "<f4"), found[1], found[2])

    def stored(self) -> Iterator[tuple[int, str, bytes | None, int | None]]:
        """Yield row, encoder, thumbnail and hash of every added picture that is there."""
        with self._lock:
            rows = []
            if self._open() and self._connection is not None:
                rows = [row for (row,) in self._connection.execute("SELECT row FROM pictures ORDER BY row")]
        for row in rows:
            with self._lock:
                assert self._connection is not None
                yield self._connection.execute(
                    "SELECT row, encoder, thumbnail, picture_hash FROM pictures WHERE row = ?", (row,)
                ).fetchone()

    def check(self) -> None:
        """Read the whole file and check it.

        Raises:
            BundleError: it is damaged.
        """
        delta = self.advance()
        with self._lock:
            if self._connection is None:
                return
            try:
                found = self._connection.execute("PRAGMA integrity_check").fetchone()[0]
                last = 0
                for table in ("pictures", "removed", "updated"):
                    newest = self._connection.execute(f"SELECT MAX(change) FROM {table}").fetchone()[0]
                    last = max(last, newest or 0)
            except sqlite3.Error as exc:
                raise BundleError(f"the changes {self._path} are damaged: {exc}; {_ADVICE}") from exc
        if found != "ok" or last > delta.change:
            raise BundleError(f"the changes {self._path} are damaged ({found}); {_ADVICE}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> bool:
        """Open the file if it is there; again, if it is another one than before."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return self._connection is not None  # removed from under us: what was read stays readable
        place: tuple[int, ...] = (found.st_dev, found.st_ino)
        state = (*place, found.st_mtime_ns, found.st_size, int(waits_in_log(self._path)))
        if self._connection is not None and self._place in (place, state):
            return True
        connection, immutable = open_readable(self._path)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if "state" not in tables:  # whoever makes it is not done, or was killed
                connection.close()
                return False
            held = dict(connection.execute("SELECT key, value FROM state"))
            if held.get("base") != self._base:
                raise ValueError("they were made to another snapshot")
        except BaseException:
            connection.close()
            raise
        self._close()
        self._connection, self._place = connection, state if immutable else place
        self._generation += 1
        return True

    def _read(self, connection: sqlite3.Connection, delta: Delta) -> Delta:
        state = dict(connection.execute("SELECT key, value FROM state"))
        epoch, change = int(state["epoch"]), int(state["change"])
        if (self._generation, epoch, change) == (delta.generation, delta.epoch, delta.change):
            return delta
        if self._generation != delta.generation or epoch != delta.epoch or change < delta.change:
            delta = Delta(size=self._size, width=self._width, generation=self._generation)
        since = delta.change
        added, ids, updated = dict(delta.added), dict(delta.ids), dict(delta.updated)
        last = int(delta.rows[-1]) if len(delta.rows) else self._size - 1
        rows, vectors = list[int](), list[bytes]()
        columns = "row, id, item, digest, metadata, vector, guard"
        found = connection.execute(f"SELECT {columns} FROM pictures WHERE change > ? ORDER BY row", (since,))
        for row, identity, item, digest, text, vector, guard in found:
            self._check(row, guard, identity, item, digest, text, vector)
            if len(vector) != 4 * self._width or row < self._size:
                raise ValueError(f"row {row} does not fit the snapshot")
            added[row] = Record(id=identity, item=item, metadata=json.loads(text), digest=digest)
            ids[identity] = row
            if row > last:
                rows.append(row)
                vectors.append(vector)
        found = connection.execute("SELECT row, id, item, metadata, guard FROM updated WHERE change > ?", (since,))
        for row, identity, item, text, guard in found:
            self._check(row, guard, identity, item, text)
            updated[row] = Record(id=identity, item=item, metadata=json.loads(text))
        gone = list[int]()
        for row, identity in connection.execute("SELECT row, id FROM removed WHERE change > ?", (since,)):
            if row >= self._size:
                added.pop(row, None)
                if ids.get(identity) == row:
                    del ids[identity]
            else:
                gone.append(row)
                updated.pop(row, None)
        removed = delta.removed
        if gone:
            before = [] if removed is None else [removed.rows]
            removed = RemovedRows(self._size, np.concatenate([*before, np.array(gone, np.int64)]))
        every = np.concatenate([delta.rows, np.array(rows, np.int64)])
        kept = np.fromiter(added, np.int64, len(added))
        kept.sort()
        return replace(
            delta,
            epoch=epoch,
            change=change,
            rows=every,
            alive=np.searchsorted(every, kept).astype(np.int64),
            added=added,
            ids=ids,
            removed=removed,
            updated=updated,
            buffer=self._append(delta, vectors),
        )

    def _append(self, delta: Delta, vectors: list[bytes]) -> _Buffer | None:
        if not vectors:
            return delta.buffer
        held, new = len(delta.rows), np.frombuffer(b"".join(vectors), "<f4").reshape(-1, self._width)
        buffer = delta.buffer
        if buffer is None or buffer.used != held or held + len(new) > len(buffer.vectors):
            room = np.empty((max(64, 2 * (held + len(new))), self._width), np.float32)
            room[:held] = delta.vectors
            buffer = _Buffer(vectors=room)
        buffer.vectors[held : held + len(new)] = new
        buffer.used = held + len(new)
        return buffer

    def _check(self, row: int, guard: bytes, *parts: str | bytes | None) -> None:
        if guard != guard_row(row, *parts):
            raise ValueError(f"row {row} is damaged")
