"""A snapshot's ids and metadata in SQLite: items(row INTEGER PRIMARY KEY, id TEXT UNIQUE, item, digest, metadata).

`row` is the row in `vectors.npy`, `item` what the picture shows where it names that, `digest` the SHA-256 of the
picture's file, `metadata` JSON. What the file holds for filters is said in `filters/columns.py`.
"""

import itertools
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymcir_server.gallery.filters import KeyCounter, write_fields
from asymcir_server.gallery.tables import opening_table

METADATA_NAME = "metadata.sqlite"

_READ_ROWS = 10_000
_CHUNK = 500  # bound variables per statement; old SQLite builds allow 999


class MetadataWriter:
    """Writes the table of a snapshot that is being built; durable only once the snapshot is published."""

    def __init__(self, path: Path) -> None:
        """Create the table."""
        self._connection = sqlite3.connect(path, isolation_level=None)
        # The file has no name that loads until it is complete and flushed, so a journal would guard nothing.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(
            "CREATE TABLE items (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, item TEXT, digest BLOB, "
            "metadata TEXT NOT NULL)"
        )
        self._connection.execute("BEGIN")  # one transaction: a commit for each row costs more than the row
        self._keys = KeyCounter()

    def add(
        self,
        row: int,
        identity: str,
        metadata: Mapping[str, Any],
        *,
        item: str | None = None,
        digest: bytes | None = None,
    ) -> bool:
        """Add one picture; returns False, and adds nothing, when the id is taken.

        Args:
            row: in `vectors.npy`.
            identity: the id.
            metadata: JSON values.
            item: what the picture shows, where it names that.
            digest: of the picture's file.
        """
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
        cursor = self._connection.execute(
            "INSERT OR IGNORE INTO items (row, id, item, digest, metadata) VALUES (?, ?, ?, ?, ?)",
            (row, identity, item, digest, text),
        )
        if cursor.rowcount != 1:
            return False
        self._keys.add(metadata)
        return True

    def finish(self) -> int:
        """Write what filters and items need, once every picture is added.

        Returns:
            Different items, a picture without one counted as an item by itself; 0 where no picture names an item.
        """
        self._connection.execute("COMMIT")
        write_fields(self._connection, self._keys)
        self._connection.execute("CREATE INDEX items_item ON items (item) WHERE item IS NOT NULL")
        count = "SELECT COUNT(DISTINCT item), COUNT(*) - COUNT(item) FROM items"
        named, alone = self._connection.execute(count).fetchone()
        return int(named) + int(alone) if named else 0

    def duplicates(self) -> Iterator[list[str]]:
        """Yield the ids of pictures whose files are equal, in the order of their rows; makes the index of digests."""
        self._connection.execute("CREATE INDEX IF NOT EXISTS items_digest ON items (digest)")
        found = self._connection.execute(
            "SELECT items.digest, id FROM items JOIN (SELECT digest, MIN(row) AS first FROM items "
            "WHERE digest IS NOT NULL GROUP BY digest HAVING COUNT(*) > 1) AS repeated "
            "ON items.digest = repeated.digest ORDER BY first, row"
        )
        for _, group in itertools.groupby(found, key=lambda item: item[0]):
            yield [identity for _, identity in group]

    def rows(self, rows: Sequence[int]) -> list[tuple[str, bytes | None]]:
        """Return the id and the digest of each of some rows."""
        found: list[tuple[str, bytes | None]] = []
        for row in rows:
            found += self._connection.execute("SELECT id, digest FROM items WHERE row = ?", (row,)).fetchall()
        return found

    def close(self) -> None:
        """Write everything out."""
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        self._connection.close()


class MetadataReader:
    """Reads the table of a published snapshot. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Open the table read-only.

        Raises:
            BundleError: it cannot be read.
        """
        self._lock = threading.Lock()
        with opening_table(path) as self._connection:
            self.size = int(self._connection.execute("SELECT COUNT(*) FROM items").fetchone()[0])
            held = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(items)")}
        self._has_items, self._has_digests = "item" in held, "digest" in held  # snapshots of before have neither

    def ids(self, rows: Sequence[int]) -> dict[int, str]:
        """Map rows to ids."""
        return dict(self._select("SELECT row, id FROM items WHERE row IN", rows))

    def rows(self, ids: Sequence[str]) -> dict[str, int]:
        """Map ids to rows; unknown ids are left out."""
        return dict(self._select("SELECT id, row FROM items WHERE id IN", ids))

    def digest(self, identity: str) -> bytes | None:
        """Return the digest of a picture's file; None for an unknown id, and in snapshots that hold no digests."""
        if not self._has_digests:
            return None
        with self._lock:
            found = self._connection.execute("SELECT digest FROM items WHERE id = ?", (identity,)).fetchone()
        return None if found is None else found[0]

    def digests(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Map rows to the digests of their files; rows without one are left out."""
        if not self._has_digests:
            return {}
        return dict(self._select("SELECT row, digest FROM items WHERE digest IS NOT NULL AND row IN", rows))

    def items(self, rows: Sequence[int]) -> dict[int, str]:
        """Map rows to the items that they show; rows without one are left out."""
        if not self._has_items:
            return {}
        return dict(self._select("SELECT row, item FROM items WHERE item IS NOT NULL AND row IN", rows))

    def item_rows(self, items: Sequence[str]) -> NDArray[np.int64]:
        """Return all rows of some items: [n]."""
        if not self._has_items:
            return np.empty(0, np.int64)
        found = self._select("SELECT row, item FROM items WHERE item IN", items)
        return np.fromiter((row for row, _ in found), np.int64)

    def count_alone(self) -> int:
        """Count the rows that show no item."""
        if not self._has_items:
            return self.size
        with self._lock:
            return int(self._connection.execute("SELECT COUNT(*) FROM items WHERE item IS NULL").fetchone()[0])

    def read_all(self) -> Iterator[tuple[int, str, str | None, bytes | None, str]]:
        """Yield row, id, item, digest and metadata, as JSON, of every picture, in the order of the rows."""
        item, digest = "item" if self._has_items else "NULL", "digest" if self._has_digests else "NULL"
        statement = f"SELECT row, id, {item}, {digest}, metadata FROM items WHERE row >= ? ORDER BY row LIMIT ?"
        start = 0
        while True:
            with self._lock:
                found = self._connection.execute(statement, (start, _READ_ROWS)).fetchall()
            yield from found
            if len(found) < _READ_ROWS:
                return
            start = found[-1][0] + 1

    def metadata(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Map ids to metadata; unknown ids are left out."""
        found = self._select("SELECT id, metadata FROM items WHERE id IN", ids)
        return {identity: json.loads(text) for identity, text in found}

    def close(self) -> None:
        """Close the table."""
        with self._lock:
            self._connection.close()

    def _select(self, statement: str, keys: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(keys), _CHUNK):
            chunk = list(keys[start : start + _CHUNK])
            with self._lock:
                found = self._connection.execute(f"{statement} ({','.join('?' * len(chunk))})", chunk).fetchall()
            yield from found
