"""Metadata keys as typed columns of a snapshot's SQLite file.

    columns(position INTEGER, name TEXT, type TEXT)   a key; position NULL: it has no column
    fields(row INTEGER PRIMARY KEY, m0, m1, ...)      the values of each row, NULL where the key is missing or null

| type | values of the key | stored |
|---|---|---|
| integer | whole numbers of 64 bits | exactly |
| real | whole and other numbers | a whole number exactly, another as a double; SQLite compares the two exactly |
| text | texts | UTF-8, ordered by code point |
| boolean | true and false | 1 and 0 |
| mixed | of several of these types, or lists or objects | as below |

A mixed column holds numbers and texts as above, false and true as the blobs 00 and 01, and lists and objects as the
blob 02, of which only `exists` is true. A whole number beyond 64 bits counts as a real one.

The columns are derived from the JSON of `items` once the last row is written, so that whatever writes rows need not
know of them. Each has an index.
"""

import difflib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_COLUMNS = 200
"""The keys of most pictures get a column; those beyond cannot be filtered by."""

MAX_COUNTED_KEYS = 10_000
"""Different keys that are counted; one that is first seen beyond has no column. Bounds the memory of a build."""

_MAX_NAMED_KEYS = 1000  # beyond the columns, for the error that says so
_SHOWN_KEYS = 20
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
_DECLARED = {"integer": " INTEGER", "boolean": " INTEGER", "text": " TEXT"}  # the others keep values as they come
_SORT_CACHE_KIB = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A key that can be filtered by.

    Attributes:
        position: m{position} is the column's name in `fields`.
        key: the metadata key.
        type: "integer", "real", "text", "boolean" or "mixed".
    """

    position: int
    key: str
    type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What a snapshot can be filtered by.

    Attributes:
        by_key: the columns, those of most rows first.
        passed_over: keys of fewer rows than the columns', as far as they are named.
        built: False for a snapshot of a version that wrote no columns.
    """

    by_key: Mapping[str, Column] = field(default_factory=dict)
    passed_over: frozenset[str] = frozenset()
    built: bool = True

    def explain_missing(self, key: str) -> str:
        """Say why a key has no column, and what there is."""
        if not self.built:
            return "this gallery was built by a version without filters: build the gallery again"
        if key in self.passed_over:
            return f"of the metadata keys only the {MAX_COLUMNS} most frequent have a column, and {key!r} has none"
        if not self.by_key:
            return f"no picture has {key!r}: this gallery has no metadata to filter by"
        near = difflib.get_close_matches(key, self.by_key, n=1, cutoff=0.6)
        names = [repr(name) for name in list(self.by_key)[:_SHOWN_KEYS]]
        more = len(self.by_key) - len(names)
        return (
            f"no picture has {key!r}{f', did you mean {near[0]!r}?' if near else '.'} The keys are {', '.join(names)}"
            + (f" and {more} more" if more else "")
        )


class KeyCounter:
    """Counts keys by the type of their values, in bounded memory."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, metadata: Mapping[str, Any]) -> None:
        """Count the keys of one picture."""
        for key, value in metadata.items():
            if value is None:
                continue
            counts = self._counts.get(key)
            if counts is None:
                if len(self._counts) >= MAX_COUNTED_KEYS:
                    continue
                counts = self._counts[key] = Counter()
            counts[_kind_of(value)] += 1

    def rank(self) -> list[tuple[str, str]]:
        """Return keys and types, those of most pictures first, then by name."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1].total(), item[0]))
        return [(key, _column_type(set(counts))) for key, counts in ranked]


def write_fields(connection: sqlite3.Connection, counter: KeyCounter | None = None) -> None:
    """Derive `columns` and `fields`, with their indexes, from the metadata of `items`.

    Args:
        connection: to the snapshot's file, in autocommit mode.
        counter: of the rows of `items`; None reads them once more to count.
    """
    if counter is None:
        counter = KeyCounter()
        for (text,) in connection.execute("SELECT metadata FROM items"):
            counter.add(json.loads(text))
    ranked = counter.rank()
    columns = [Column(position=n, key=key, type=kind) for n, (key, kind) in enumerate(ranked[:MAX_COLUMNS])]
    records = [(column.position, column.key, column.type) for column in columns]
    unplaced = [(None, key, kind) for key, kind in ranked[MAX_COLUMNS : MAX_COLUMNS + _MAX_NAMED_KEYS]]
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE columns (position INTEGER, name TEXT NOT NULL, type TEXT NOT NULL)")
    connection.executemany("INSERT INTO columns VALUES (?, ?, ?)", [*records, *unplaced])
    found: Iterable[tuple[int, str]] = ()
    if columns:
        found = connection.execute("SELECT row, metadata FROM items ORDER BY row")
    insert_fields(connection, columns, ((row, json.loads(text)) for row, text in found))
    connection.execute("COMMIT")
    cache = connection.execute("PRAGMA cache_size").fetchone()[0]
    connection.execute(f"PRAGMA cache_size = -{_SORT_CACHE_KIB}")  # what the sorting for an index may hold
    for column in columns:
        name = f"m{column.position}"
        connection.execute(f"CREATE INDEX fields_{name} ON fields ({name}) WHERE {name} IS NOT NULL")
    connection.execute("PRAGMA analysis_limit = 1000")
    connection.execute("ANALYZE")
    connection.execute(f"PRAGMA cache_size = {cache}")


def insert_fields(
    connection: sqlite3.Connection, columns: Sequence[Column], records: Iterable[tuple[int, Mapping[str, Any]]]
) -> None:
    """Create `fields`, without indexes, and insert rows with their metadata."""
    declared = "".join(f", m{column.position}{_DECLARED.get(column.type, '')}" for column in columns)
    connection.execute(f"CREATE TABLE fields (row INTEGER PRIMARY KEY{declared})")
    # Numbers beyond 64 bits, booleans of mixed columns, lists and objects are rare: most values go as they are.
    kinds = [(column.key, column.type) for column in columns]
    marks = ",".join("?" * (len(columns) + 1))
    connection.executemany(
        f"INSERT INTO fields VALUES ({marks})",
        ((row, *[encode_scalar(record.get(key), kind) for key, kind in kinds]) for row, record in records),
    )


def widen_columns(columns: Columns, counter: KeyCounter) -> Columns:
    """Return columns that hold further metadata too: their types widened, new keys after them while there is room."""
    if not columns.built:
        return columns
    by_key, passed_over = dict(columns.by_key), set(columns.passed_over)
    for key, kind in counter.rank():
        held = by_key.get(key)
        if held is not None:
            by_key[key] = Column(position=held.position, key=key, type=_column_type({held.type, kind}))
        elif key in passed_over or len(by_key) >= MAX_COLUMNS:
            passed_over.add(key)
        else:
            by_key[key] = Column(position=len(by_key), key=key, type=kind)
    return Columns(by_key=by_key, passed_over=frozenset(passed_over))


def join_columns(parts: Sequence[Columns]) -> Columns:
    """Return what several galleries can be filtered by together: a key of any of them, unless one has no column for it.

    Args:
        parts: at least one; their order gives that of the keys.
    """
    passed_over = frozenset[str]().union(*(part.passed_over for part in parts))
    kinds: dict[str, set[str]] = {}
    for part in parts:
        for column in part.by_key.values():
            kinds.setdefault(column.key, set()).add(column.type)
    keys = [key for key in kinds if key not in passed_over]
    return Columns(
        by_key={key: Column(position=n, key=key, type=_column_type(kinds[key])) for n, key in enumerate(keys)},
        passed_over=passed_over,
        built=all(part.built for part in parts),
    )


def read_columns(connection: sqlite3.Connection) -> Columns:
    """Read what a snapshot can be filtered by; one of before there were columns has none."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"columns", "fields"} <= tables:
        return Columns(built=False)
    found = connection.execute("SELECT position, name, type FROM columns ORDER BY position").fetchall()
    columns = [Column(position=int(place), key=key, type=kind) for place, key, kind in found if place is not None]
    return Columns(
        by_key={column.key: column for column in columns},
        passed_over=frozenset(key for place, key, _ in found if place is None),
    )


def encode_scalar(value: Any, kind: str) -> Any:
    """Return a JSON value as a column of a type stores it."""
    if isinstance(value, bool):
        return (b"\x01" if value else b"\x00") if kind == "mixed" else int(value)
    if isinstance(value, int):
        return value if _MIN_INT64 <= value <= _MAX_INT64 else float(value)
    return b"\x02" if isinstance(value, list | dict) else value


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if _MIN_INT64 <= value <= _MAX_INT64 else "real"
    if isinstance(value, float):
        return "real"
    return "text" if isinstance(value, str) else "other"


def _column_type(kinds: set[str]) -> str:
    if kinds == {"integer", "real"}:
        return "real"
    return "mixed" if len(kinds) > 1 or kinds == {"other"} else next(iter(kinds))
