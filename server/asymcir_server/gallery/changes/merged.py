"""Snapshot and changes as one: rows, metadata, filters and search.

Rows of added pictures follow those of the snapshot. A search asks the snapshot's index for rows that are still there,
ranks the added ones exactly, and merges both; the scores of both are true inner products.
"""

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from asymcir_protos.v1 import retrieval_pb2
from numpy.typing import NDArray

from asymcir_server.gallery.changes.delta import Delta, Record
from asymcir_server.gallery.filters import Columns, KeyCounter, Selections, insert_fields, translate, widen_columns
from asymcir_server.gallery.indexes import RemovedRows, SearchIndex, rank_rows
from asymcir_server.gallery.metadata import MetadataReader

_MAX_CACHED_FILTERS = 16


def search_merged(
    index: SearchIndex,
    delta: Delta,
    query: NDArray[np.float32],
    top_k: int,
    excluded: NDArray[np.int64],
    selection: NDArray[np.int64] | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the rows of the largest inner product in a snapshot and its changes.

    Args:
        index: of the snapshot.
        delta: the changes.
        query: [b, E].
        top_k: at most this many.
        excluded: distinct rows that must not be answered.
        selection: sorted rows, of which alone may be answered, removed ones not among them; None: all.

    Returns:
        scores [b, k] and rows [b, k], best first, equal scores by row.
    """
    base_excluded = excluded[excluded < delta.size]
    base_selection: NDArray[np.int64] | None = None
    added_selection = np.empty(0, np.int64)
    if selection is not None:
        base_selection, added_selection = np.split(selection, [int(np.searchsorted(selection, delta.size))])
    scores, rows = index.search(
        query, top_k, base_excluded if len(base_excluded) else None, base_selection, removed=delta.removed
    )
    if not len(delta.alive):
        return scores, rows
    places = delta.alive
    if selection is not None or len(base_excluded) < len(excluded):
        alive = delta.rows[places]
        allowed = ~np.isin(alive, excluded)
        if selection is not None:
            allowed &= np.isin(alive, added_selection)
        places = places[allowed]
    depth = min(top_k, scores.shape[1] + len(places))
    merged_scores, merged_rows = np.empty((len(query), depth), np.float32), np.empty((len(query), depth), np.int64)
    for number in range(len(query)):
        best, found = rank_rows(delta.vectors, query[number], places, top_k)
        every_score = np.concatenate([scores[number], best])
        every_row = np.concatenate([rows[number], delta.rows[found]])
        order = np.lexsort((every_row, -every_score))[:depth]
        merged_scores[number], merged_rows[number] = every_score[order], every_row[order]
    return merged_scores, merged_rows


class MergedMetadata:
    """Ids, items and metadata of a snapshot and its changes; see `MetadataReader`."""

    def __init__(self, reader: MetadataReader, delta: Delta) -> None:
        """Join them."""
        self._reader, self._delta = reader, delta
        self._base = delta.size

    def ids(self, rows: Sequence[int]) -> dict[int, str]:
        """Map rows to ids."""
        found = self._reader.ids([row for row in rows if row < self._base])
        return found | {row: self._delta.added[row].id for row in rows if row in self._delta.added}

    def rows(self, ids: Sequence[str]) -> dict[str, int]:
        """Map ids to rows; ids that are not there are left out."""
        removed = self._delta.removed
        found = self._reader.rows(ids)
        if removed is not None and found:
            names, rows = list(found), np.fromiter(found.values(), np.int64)
            gone = np.isin(rows, removed.rows)
            found = {name: int(row) for name, row, lost in zip(names, rows, gone, strict=True) if not lost}
        return found | {identity: self._delta.ids[identity] for identity in ids if identity in self._delta.ids}

    def items(self, rows: Sequence[int]) -> dict[int, str]:
        """Map rows to the items that they show; rows without one are left out."""
        said = {row: record for row in rows if (record := self.record(row)) is not None}
        found = self._reader.items([row for row in rows if row not in said])
        return found | {row: record.item for row, record in said.items() if record.item is not None}

    def item_rows(self, items: Sequence[str]) -> NDArray[np.int64]:
        """Return all rows of some items, removed ones among them: [n]."""
        rows = [row for row in self._reader.item_rows(items).tolist() if row not in self._delta.updated]
        for item in dict.fromkeys(items):
            rows += self._rows_by_item.get(item, ())
        return np.array(rows, np.int64)

    def metadata(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Map ids to metadata; ids that are not there are left out."""
        rows = self.rows(ids)
        said = {identity: record for identity, row in rows.items() if (record := self.record(row)) is not None}
        found = self._reader.metadata([identity for identity in rows if identity not in said])
        return found | {identity: dict(record.metadata) for identity, record in said.items()}

    def digest(self, identity: str) -> bytes | None:
        """Return the digest of a picture's file; None where it is not known."""
        row = self.rows([identity]).get(identity)
        if row is None:
            return None
        return self._reader.digest(identity) if row < self._base else self._delta.added[row].digest

    def digests(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Map rows to the digests of their files; rows without one are left out."""
        added = {row: self._delta.added[row].digest for row in rows if row in self._delta.added}
        found = self._reader.digests([row for row in rows if row < self._base])
        return found | {row: digest for row, digest in added.items() if digest is not None}

    def record(self, row: int) -> Record | None:
        """Return what the changes say of a row; None where that is nothing."""
        return self._delta.added.get(row) or self._delta.updated.get(row)

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield what the changes say."""
        yield from self._delta.updated.items()
        yield from self._delta.added.items()

    @cached_property
    def _rows_by_item(self) -> dict[str, list[int]]:
        """The rows that the changes give an item."""
        found: dict[str, list[int]] = {}
        for row, record in self.records():
            if record.item is not None:
                found.setdefault(record.item, []).append(row)
        return found

    def count_items(self, base_items: int) -> int:
        """Count different items, a picture without one as an item by itself; 0 where no picture names an item.

        Args:
            base_items: the same of the snapshot.
        """
        delta, reader = self._delta, self._reader
        gone = [] if delta.removed is None else delta.removed.rows.tolist()
        changed = [*gone, *delta.updated]  # rows of the snapshot whose item may have gone
        before = reader.items(changed)
        touched = set(before.values()) | {record.item for _, record in self.records() if record.item is not None}
        alone = reader.count_alone() if base_items else delta.size
        named = base_items - alone if base_items else 0
        named -= sum(1 for item in touched if len(reader.item_rows([item])))
        lost = np.array(gone, np.int64)
        for item in touched:
            named += bool(len(np.setdiff1d(self.item_rows([item]), lost)))
        alone -= sum(1 for row in changed if row not in before)
        alone += sum(1 for _, record in self.records() if record.item is None)
        return named + alone if named else 0


class MergedSelections:
    """Answers which rows of a snapshot and its changes satisfy a filter. Safe to share between threads.

    What it keeps is of these changes: other changes get another one.
    """

    def __init__(self, selections: Selections, delta: Delta) -> None:
        """Prepare; nothing is read before the first filter."""
        self._selections, self._delta = selections, delta
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, NDArray[np.int64]] = OrderedDict()
        self._table: sqlite3.Connection | None = None

    @cached_property
    def columns(self) -> Columns:
        """What can be filtered by: the snapshot's columns, widened to what the changes say."""
        counter = KeyCounter()
        for record in (*self._delta.updated.values(), *self._delta.added.values()):
            counter.add(record.metadata)
        return widen_columns(self._selections.columns, counter)

    def select(self, message: retrieval_pb2.Filter, columns: Columns | None = None) -> NDArray[np.int64]:
        """Return the rows that satisfy a filter: [n], sorted, not to be written to.

        Args:
            message: the filter.
            columns: what it is checked against, where other shards widen the columns of this one.

        Raises:
            RequestError: see `translate`.
        """
        checked = columns or self.columns
        condition, parameters = translate(message, checked, self.columns)
        key = message.SerializeToString(deterministic=True)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        rows = self._selections.select(message, checked)
        if self._delta.removed is not None:
            rows = self._delta.removed.drop_from(rows)
        if self._delta.updated:
            rows = RemovedRows(self._delta.size, np.fromiter(self._delta.updated, np.int64)).drop_from(rows)
        with self._lock:
            found = self._read(condition, parameters)
            rows = np.sort(np.concatenate([rows, found]))
            rows.flags.writeable = False
            self._cache[key] = rows
            while len(self._cache) > _MAX_CACHED_FILTERS:
                self._cache.popitem(last=False)
        return rows

    def close(self) -> None:
        """Drop what is kept."""
        with self._lock:
            if self._table is not None:
                self._table.close()
                self._table = None

    def _read(self, condition: str, parameters: list[Any]) -> NDArray[np.int64]:
        if self._table is None:
            self._table = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            records = [*self._delta.updated.items(), *self._delta.added.items()]
            insert_fields(
                self._table,
                list(self.columns.by_key.values()),
                ((row, record.metadata) for row, record in records),
            )
        found = self._table.execute(f"SELECT row FROM fields WHERE {condition}", parameters).fetchall()
        return np.array([row for (row,) in found], np.int64)
