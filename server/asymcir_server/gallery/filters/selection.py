"""The rows that a filter selects, kept for the last few filters of a snapshot."""

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from asymcir_protos.v1 import retrieval_pb2
from numpy.typing import NDArray

from asymcir_server.gallery.filters.columns import Columns, read_columns
from asymcir_server.gallery.filters.translation import translate
from asymcir_server.gallery.tables import opening_table

MAX_CACHED_FILTERS = 64
MAX_CACHED_BYTES = 64 * 1024 * 1024
"""Of rows, 8 bytes each, for each open snapshot."""

_TEXT_ROWS = 10_000_000  # of one text; SQLite's longest has 10^9 bytes


class Selections:
    """Answers which rows of a published snapshot satisfy a filter. Safe to share between threads.

    It has a connection of its own, so that a filter that reads the whole table holds up no search without one.

    Attributes:
        columns: what can be filtered by.
    """

    def __init__(self, path: Path) -> None:
        """Open the table read-only.

        Raises:
            BundleError: it cannot be read.
        """
        self._database_lock, self._cache_lock = threading.Lock(), threading.Lock()
        self._cache: OrderedDict[bytes, NDArray[np.int64]] = OrderedDict()
        self._cached_bytes = 0
        with opening_table(path) as self._connection:
            self.columns: Columns = read_columns(self._connection)
            last = "SELECT MAX(row) FROM fields" if self.columns.built else "SELECT NULL"
            self._size = int((self._connection.execute(last).fetchone()[0] or 0) + 1)

    def select(self, message: retrieval_pb2.Filter, columns: Columns | None = None) -> NDArray[np.int64]:
        """Return the rows that satisfy a filter: [n], sorted, not to be written to.

        Args:
            message: the filter.
            columns: what it is checked against, where changes to the snapshot have widened its columns.

        Raises:
            RequestError: see `translate`.
        """
        key = message.SerializeToString(deterministic=True)
        with self._cache_lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        condition, parameters = translate(message, columns or self.columns, self.columns)
        rows = self._read(condition, parameters)
        rows.flags.writeable = False
        with self._cache_lock:
            if key not in self._cache and rows.nbytes <= MAX_CACHED_BYTES:
                self._cache[key] = rows
                self._cached_bytes += rows.nbytes
            while len(self._cache) > MAX_CACHED_FILTERS or self._cached_bytes > MAX_CACHED_BYTES:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return rows

    def close(self) -> None:
        """Close the table."""
        with self._database_lock:
            self._connection.close()

    def _read(self, condition: str, parameters: list[object]) -> NDArray[np.int64]:
        # As one text: SQLite joins rows four times as fast as Python fetches them. The unary plus leaves the choice of
        # an index to the filter.
        statement = f"SELECT group_concat(row) FROM fields WHERE {condition} AND +row >= ? AND +row < ?"
        parts = [np.empty(0, np.int64)]
        with self._database_lock:
            for start in range(0, self._size, _TEXT_ROWS):
                (text,) = self._connection.execute(statement, [*parameters, start, start + _TEXT_ROWS]).fetchone()
                if text is not None:
                    parts.append(np.fromstring(str(text), dtype=np.int64, sep=","))
        return np.sort(np.concatenate(parts))
