"""The changes made to a snapshot: `GALLERY/changes/000003.sqlite`, beside the snapshot, which stays as it is.

    state(key, value)     base: digest of the snapshot's manifest; size: its rows; change: the number of the last
                          transaction; epoch: how often all changes were discarded; next_row: of the next added picture
    pictures(row, ...)    pictures that were added; rows go on where those of the snapshot end, and are never used again
    removed(row, ...)     rows that are gone, of the snapshot or added
    updated(row, ...)     the metadata of the snapshot's rows that were changed, whole

Every change is one transaction of SQLite (WAL, synchronous = FULL): it is on disk before it is acknowledged, and after
a crash it is there as a whole or not at all. `guard` is a digest of a row, since SQLite has none.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import BundleError
from asymcir_common.manifest import MANIFEST_NAME, digest_file
from numpy.typing import NDArray

CHANGES_NAME = "changes"

_OPTIONS: dict[str, Any] = {"uri": True, "isolation_level": None, "check_same_thread": False, "timeout": 10.0}
_SCHEMA = """
CREATE TABLE state (key TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE pictures (row INTEGER PRIMARY KEY, change INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, item TEXT,
    digest BLOB, metadata TEXT NOT NULL, vector BLOB NOT NULL, encoder TEXT NOT NULL, thumbnail BLOB,
    picture_hash INTEGER, guard BLOB NOT NULL);
CREATE TABLE removed (row INTEGER PRIMARY KEY, change INTEGER NOT NULL, id TEXT NOT NULL);
CREATE TABLE updated (row INTEGER PRIMARY KEY, change INTEGER NOT NULL, id TEXT NOT NULL, item TEXT,
    metadata TEXT NOT NULL, guard BLOB NOT NULL);
CREATE INDEX pictures_change ON pictures (change);
CREATE INDEX pictures_digest ON pictures (digest);
CREATE INDEX removed_change ON removed (change);
CREATE INDEX updated_change ON updated (change);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPicture:
    """A picture to add.

    Attributes:
        id: not held by another picture of the gallery.
        item: what it shows, where it names that.
        digest: SHA-256 of its file.
        metadata: JSON values.
        vector: [E], float32, its target representation.
        encoder: digest of what made the vector; see `encoder_digest`.
        thumbnail: a WebP file, where the gallery keeps thumbnails.
        picture_hash: 64 bits, where the gallery keeps hashes.
    """

    id: str
    item: str | None
    digest: bytes
    metadata: Mapping[str, Any]
    vector: NDArray[np.float32]
    encoder: str
    thumbnail: bytes | None = None
    picture_hash: int | None = None


def changes_path(gallery: Path, version: str) -> Path:
    """Return where the changes to a snapshot lie."""
    return gallery / CHANGES_NAME / f"{version}.sqlite"


def remove_changes(gallery: Path, version: str) -> None:
    """Remove the changes to a snapshot that is gone."""
    path = changes_path(gallery, version)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def digest_base(snapshot: Path) -> str:
    """Return what tells a snapshot from every other: the digest of its manifest.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        return digest_file(snapshot / MANIFEST_NAME).sha256
    except OSError as exc:
        raise BundleError(f"cannot read {snapshot / MANIFEST_NAME}: {exc.strerror or exc}") from exc


def mark_base(snapshot: Path) -> tuple[int, ...]:
    """Return what changes when a snapshot's folder is replaced by another: cheap, and not after a restart the same.

    Raises:
        BundleError: it is gone.
    """
    try:
        found = (snapshot / MANIFEST_NAME).stat()
    except OSError as exc:
        raise BundleError(f"cannot read {snapshot / MANIFEST_NAME}: {exc.strerror or exc}") from exc
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def guard_row(row: int, *parts: str | bytes | None) -> bytes:
    """Return the digest of a row's values."""
    digest = hashlib.blake2b(str(row).encode(), digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(b"-" if data is None else f"{len(data)}:".encode() + data)
    return digest.digest()


def open_writable(path: Path) -> sqlite3.Connection:
    """Open a file of changes for writing, or make it: in autocommit mode, for every thread.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    connection: sqlite3.Connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rwc", **_OPTIONS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # on macOS fsync alone does not reach the disk
    return connection


def open_readable(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open a file of changes for reading, in autocommit mode, for every thread.

    SQLite needs a small file beside it to read along with a writer. Where that cannot be made (another user's folder, a
    full disk) the file is read as it lies there, which is right while nothing waits in its log.

    Returns:
        The connection, and whether it reads the file as it lies there: what is written later is not seen through it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    uri = path.resolve().as_uri()
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    modes = ["rw"] if writable else ["ro"]
    if not waits_in_log(path):
        modes.append("ro&immutable=1") if writable else modes.insert(0, "ro&immutable=1")
    for mode in modes:
        connection = sqlite3.connect(f"{uri}?mode={mode}", **_OPTIONS)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as exc:
            connection.close()
            if mode == modes[-1] or not isinstance(exc, sqlite3.OperationalError):
                raise
        else:
            return connection, "immutable" in mode
    raise AssertionError("unreachable: the last mode returns or raises")


def waits_in_log(path: Path) -> bool:
    """Whether something that was written lies in the log of a file of changes, not in the file."""
    log = path.with_name(f"{path.name}-wal")
    try:
        return log.stat().st_size > 0
    except FileNotFoundError:
        return False


class ChangesWriter:
    """Writes changes to one snapshot. Whoever holds one holds the gallery's lock.

    Attributes:
        size: rows of the snapshot.
    """

    def __init__(self, gallery: Path, snapshot: Path, size: int) -> None:
        """Open the file, or make it.

        Raises:
            BundleError: it belongs to another snapshot, or is damaged.
            OSError, sqlite3.Error: it cannot be written.
        """
        self._path = changes_path(gallery, snapshot.name)
        self.size = size
        base = digest_base(snapshot)
        self._path.parent.mkdir(exist_ok=True)
        try:
            self._connection = open_writable(self._path)
            self._create(base)
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):  # full, busy, not ours
                raise
            raise BundleError(f"{self._path} is damaged: {exc}; see `asymcir gallery verify`") from exc
        held = dict(self._connection.execute("SELECT key, value FROM state"))
        if held.get("base") != base:
            self.close()
            raise BundleError(f"the changes {self._path} were made to another snapshot: remove that file")

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """Make one change of what the block does: all of it is on disk afterwards, or none of it.

        Yields:
            The number of the change.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            before = self._connection.total_changes
            change = int(self._get("change")) + 1
            yield change
            if self._connection.total_changes == before:
                self._connection.execute("ROLLBACK")
                return
            self._connection.execute("UPDATE state SET value = ? WHERE key = 'change'", (change,))
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk ends the transaction by itself
                self._connection.execute("ROLLBACK")
            raise

    def add(self, change: int, picture: NewPicture) -> int:
        """Add a picture in a transaction; returns its row."""
        row = int(self._get("next_row"))
        self._connection.execute("UPDATE state SET value = ? WHERE key = 'next_row'", (row + 1,))
        text = json.dumps(picture.metadata, ensure_ascii=False, separators=(",", ":"))
        vector = np.ascontiguousarray(picture.vector, dtype="<f4").tobytes()
        hashed = picture.picture_hash
        if hashed is not None and hashed >= 2**63:  # SQLite's integers are signed
            hashed -= 2**64
        guard = guard_row(row, picture.id, picture.item, picture.digest, text, vector)
        self._connection.execute(
            "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row, change, picture.id, picture.item, picture.digest, text, vector, picture.encoder,
                picture.thumbnail, hashed, guard,
            ),
        )  # fmt: skip
        return row

    def remove(self, change: int, row: int, identity: str) -> None:
        """Remove a row, of the snapshot or added, in a transaction."""
        table = "pictures" if row >= self.size else "updated"
        self._connection.execute(f"DELETE FROM {table} WHERE row = ?", (row,))
        self._connection.execute("INSERT INTO removed VALUES (?, ?, ?)", (row, change, identity))

    def update(self, change: int, row: int, identity: str, item: str | None, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata of a row, of the snapshot or added, in a transaction."""
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
        if row < self.size:
            self._connection.execute(
                "INSERT OR REPLACE INTO updated VALUES (?, ?, ?, ?, ?, ?)",
                (row, change, identity, item, text, guard_row(row, identity, item, text)),
            )
            return
        found = self._connection.execute("SELECT digest, vector FROM pictures WHERE row = ?", (row,)).fetchone()
        guard = guard_row(row, identity, item, found[0], text, found[1])
        self._connection.execute(
            "UPDATE pictures SET change = ?, item = ?, metadata = ?, guard = ? WHERE row = ?",
            (change, item, text, guard, row),
        )

    def discard(self) -> int:
        """Undo every change; returns how many rows they concerned."""
        with self.transaction():
            count = 0
            for table in ("pictures", "removed", "updated"):
                count += self._connection.execute(f"DELETE FROM {table}").rowcount
            if count:
                self._connection.execute("UPDATE state SET value = value + 1 WHERE key = 'epoch'")
        return count

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _create(self, base: str) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        if self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'state'").fetchone() is None:
            for statement in _SCHEMA.split(";"):
                self._connection.execute(statement)
            state = {"base": base, "size": self.size, "change": 0, "epoch": 0, "next_row": self.size}
            self._connection.executemany("INSERT INTO state VALUES (?, ?)", state.items())
        self._connection.execute("COMMIT")
        for folder in (self._path.parent, self._path.parent.parent):  # its name must outlive a crash too
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _get(self, key: str) -> Any:
        return self._connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()[0]
