"""Rows of numbers on disk, found by key: the store behind the caches of pictures, texts and queries.

A store is a folder:

    cache.json          what its rows were made with, and their shapes
    index.sqlite        key -> row
    NAME.f32, NAME.f16  [rows, ...], one file for each part of a row

Rows are appended. A row is on the disk before its key is in the table, so that whatever a crash leaves beyond the
table's rows is written again. One process writes at a time, and any number read.

Notation: k keys, each of 32 bytes (SHA-256).
"""

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from asymcir_common import AsymcirError
from asymcir_common.files import write_atomically
from numpy.typing import NDArray

from asymcir_training.errors import CacheError
from asymcir_training.teacher.row_files import NO_ROOM, RowFile

_STATE_NAME, _INDEX_NAME = "cache.json", "index.sqlite"
_KEYS_AT_ONCE = 1000
_FLUSH_EVERY_S = 10.0
_BUSY_S = 60.0
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA, sqlite3.SQLITE_ERROR})
"""Errors that a new store does away with; SQLITE_ERROR is that of a table or a column that is not there."""

_HELD = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SCHEMA = "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, row INTEGER NOT NULL UNIQUE) WITHOUT ROWID;"

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file of a store.

    Attributes:
        name: of the file.
        dtype: of its values.
    """

    name: str
    dtype: Any


class KeyedRows:
    """One store."""

    def __init__(
        self, folder: Path, facts: Mapping[str, Any], parts: Sequence[Part], *, what: str, schema: str = ""
    ) -> None:
        """Look at a store; nothing is written.

        Args:
            folder: of the store; need not be there.
            facts: what the rows are made with, plain JSON.
            parts: the files; a store may lack some (see `write`).
            what: its name in messages, "the teacher cache".
            schema: SQL that makes further tables of the index, if they are not there.

        Raises:
            CacheError: the folder's store is damaged, cannot be read, or was made with something else.
        """
        self.folder, self.what = folder, what
        self._facts, self._parts, self._schema = dict(facts), tuple(parts), _SCHEMA + schema
        self._shapes: list[Shape | None] | None = None
        self._read_state()

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Find the rows of keys: [k], -1 where there is none yet."""
        found = dict(self.query("SELECT key, row FROM rows WHERE key IN ({})", sorted(set(keys))))
        return np.fromiter((found.get(key, -1) for key in keys), np.int64, len(keys))

    def query(self, sql: str, keys: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Run a SELECT with so many keys at a time in the place of `{}`; nothing where there is no index yet."""
        if not self._has_index():
            return
        with self._connect() as connection:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[start : start + _KEYS_AT_ONCE]
                yield from connection.execute(sql.format(",".join("?" * len(some))), some)

    def read(self) -> list[NDArray[Any] | None]:
        """Return the rows of each part, memory-mapped, None for a part that the store lacks.

        Raises:
            CacheError: a file is shorter than its rows.
        """
        count = self._count()
        opened: list[NDArray[Any] | None] = []
        for part, shape in zip(self._parts, self._shapes or [None] * len(self._parts), strict=True):
            if shape is None:
                opened.append(None)
                continue
            path, full = self.folder / part.name, (count, *shape)
            needed = int(np.prod(full)) * np.dtype(part.dtype).itemsize
            found = path.stat().st_size if path.is_file() else 0
            if found < needed:
                raise self.damaged(f"{part.name} has {found:,} bytes, its {count:,} rows have {needed:,}")
            opened.append(np.memmap(path, part.dtype, "r", shape=full) if count else np.empty(full, part.dtype))
        return opened

    @contextlib.contextmanager
    def write(self, shapes: Sequence[Shape | None], *, most: int) -> Iterator["Writer"]:
        """Append rows; call it with the store's lock held.

        Args:
            shapes: of a row of each part, None for a part that this store lacks.
            most: rows that may come; room is reserved for them, and what is not used is given back. So it is where an
                error ends the writing; the rows that were appended before it are kept.

        Raises:
            CacheError: no room for so many, the disk fills up meanwhile, or rows of other shapes than the store's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._shapes is None:
            state = self._facts | {"shapes": [None if shape is None else list(shape) for shape in shapes]}
            write_atomically(self.folder / _STATE_NAME, json.dumps(state, indent=2, ensure_ascii=False) + "\n")
            self._read_state()
        if self._shapes != [*shapes]:
            raise self.damaged(f"it has rows of the shapes {self._shapes}, now they are {[*shapes]}")
        with contextlib.ExitStack() as stack, _explain_full_disk(self.folder, self.what):
            with self._connect(create=True) as connection:
                connection.executescript(f"BEGIN; {self._schema} COMMIT;")
            files = [
                stack.enter_context(RowFile(self.folder / part.name, shape, part.dtype))
                for part, shape in zip(self._parts, shapes, strict=True)
                if shape is not None
            ]
            writer = Writer(self._connect, files, self._count())
            try:
                self._allocate(files, rows=writer.rows, most=most)
                yield writer
            except BaseException:
                # The first error is the one to tell; whole rows are kept where that is possible.
                with contextlib.suppress(AsymcirError, OSError):
                    writer.flush()
                with contextlib.suppress(AsymcirError, OSError):
                    _give_back(files, self._count())
                raise
            writer.flush()
            _give_back(files, writer.rows)

    def damaged(self, why: str) -> CacheError:
        """Return the error for a store that cannot be used."""
        return CacheError(f"{self.what} {self.folder} is damaged ({why}): remove that folder, and it is made anew")

    def _unusable(self, why: str) -> CacheError:
        """Return the error for a store that may be whole, where it cannot be read or written."""
        return CacheError(
            f"{self.what} {self.folder} cannot be used ({why}); it is kept. Check that disk and the folder's "
            "permissions, or pass another cache folder"
        )

    def _count(self) -> int:
        if not self._has_index():
            return 0
        with self._connect() as connection:
            count, last = connection.execute("SELECT COUNT(*), COALESCE(MAX(row), -1) FROM rows").fetchone()
        if last != count - 1:
            raise self.damaged(f"{_INDEX_NAME} has {count} keys, the last row is {last}")
        return int(count)

    def _has_index(self) -> bool:
        """Whether there is an index; it is empty where a process was killed before its tables were made."""
        path = self.folder / _INDEX_NAME
        return path.is_file() and path.stat().st_size > 0

    @contextlib.contextmanager
    def _connect(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the index for a moment: an open connection must not go through a fork."""
        path = self.folder.resolve() / _INDEX_NAME
        # To read after a kill can mean to roll back, so it is opened read-only where nothing can be written alone.
        mode = "rwc" if create else "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=_BUSY_S, isolation_level=None)
            ) as connection:
                yield connection
        except sqlite3.Error as exc:
            # The low byte is the kind of error, what stands above it tells more.
            code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from exc
            if code in _DAMAGE:
                raise self.damaged(f"{_INDEX_NAME}: {exc}") from exc
            if code in _HELD:
                raise CacheError(
                    f"another process holds {self.what} {self.folder} ({exc}): wait for it or end it, and start again"
                ) from exc
            raise self._unusable(f"{_INDEX_NAME}: {exc}") from exc

    def _read_state(self) -> None:
        path = self.folder / _STATE_NAME
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found = {name: state[name] for name in self._facts}
            shapes = [None if shape is None else tuple(int(side) for side in shape) for shape in state["shapes"]]
        except FileNotFoundError:
            return
        except OSError as exc:
            raise self._unusable(f"{_STATE_NAME}: {exc.strerror or exc}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise self.damaged(f"{_STATE_NAME} cannot be read: {type(exc).__name__}: {exc}") from exc
        if len(shapes) != len(self._parts):
            raise self.damaged(f"{_STATE_NAME} is of {len(shapes)} files, expected {len(self._parts)}")
        # The name is how the foundation was asked for: its digest decides, not where it came from.
        differing = [name for name in self._facts if name != "foundation" and found[name] != self._facts[name]]
        if differing:
            raise CacheError(
                f"{self.what} {self.folder} is of another "
                + " and of another ".join(_describe_difference(name, found, self._facts) for name in differing)
                + ": pass another cache folder, or remove this entry"
            )
        self._shapes = shapes

    def _allocate(self, files: Sequence[RowFile], *, rows: int, most: int) -> None:
        """Give the files the room of all rows that may come, or say what is missing."""
        for file in files:
            if file.size_bytes < rows * file.row_bytes:
                raise self.damaged(
                    f"{file.path.name} has {file.size_bytes:,} bytes, its {rows:,} rows have {rows * file.row_bytes:,}"
                )
        total = rows + most
        needed_bytes = sum(max(0, total * file.row_bytes - file.allocated_bytes) for file in files)
        free_bytes = shutil.disk_usage(self.folder).free
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
                f"no room for {self.what} in {self.folder}: it needs {needed_bytes:,} bytes more for {most:,} rows, "
                f"{free_bytes:,} are free; {rows:,} rows are kept. Make room, or put the cache on another disk"
            ) from exc


class Writer:
    """Appends rows to a store (see `KeyedRows.write`).

    Attributes:
        rows: that the store has, those not yet flushed among them.
    """

    def __init__(
        self,
        connect: Callable[[], contextlib.AbstractContextManager[sqlite3.Connection]],
        files: Sequence[RowFile],
        rows: int,
    ) -> None:
        self._connect, self._files = connect, files
        self.rows = rows
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []
        self._flushed_s = time.monotonic()

    def append(self, keys: Sequence[bytes], values: Sequence[NDArray[Any]]) -> None:
        """Append rows of keys that the store does not have: one array [k, ...] for each of its files."""
        for file, array in zip(self._files, values, strict=True):
            file.write(self.rows, array)
        for number, key in enumerate(keys):
            self.note("INSERT INTO rows VALUES (?, ?)", (key, self.rows + number))
        self.rows += len(keys)

    def note(self, sql: str, values: tuple[Any, ...]) -> None:
        """Run a statement with the next flush."""
        self._waiting.append((sql, values))

    def flush_when_due(self) -> None:
        """Flush if the last time is some seconds ago."""
        if time.monotonic() - self._flushed_s > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Return when all that was appended is on the disk, and found by others."""
        for file in self._files:
            file.flush()
        if self._waiting:
            with self._connect() as connection:
                connection.execute("BEGIN IMMEDIATE")
                for sql, values in self._waiting:
                    connection.execute(sql, values)
                connection.execute("COMMIT")
        self._waiting.clear()
        self._flushed_s = time.monotonic()


def _give_back(files: Sequence[RowFile], rows: int) -> None:
    """Cut files to their rows; one that is shorter, and so damaged, stays as it is."""
    for file in files:
        if file.size_bytes > rows * file.row_bytes:
            file.cut(rows)


@contextlib.contextmanager
def _explain_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Name the way out where the disk fills up meanwhile, on a file system that cannot reserve room."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in NO_ROOM:
            raise
        raise CacheError(
            f"the disk of {what} {folder} is full ({shutil.disk_usage(folder).free:,} bytes are free); what was "
            "written so far is kept. Make room and start again"
        ) from exc


def _describe_difference(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if name in ("visual_digest", "word_space"):
        sides = (f"{side['foundation']} ({str(side[name])[:12]})" for side in (found, wanted))
        return "foundation, {} instead of {}".format(*sides)
    return f"{name}, {found[name]} instead of {wanted[name]}"
