"""The table of the kinds of index, beside usearch and hnswlib."""

from collections.abc import Mapping
from typing import Any

from asymcir_benchmarks.pages.markdown import describe_source, make_table

_HEAD = (
    "index",
    "vectors",
    "build, processor s",
    "bytes per vector beside the vectors",
    "opening, s",
    "own memory at opening, MB",
    "probes",
    "recall@10",
    "ms",
    "1% selected: recall@10",
    "1% selected: ms",
)
_COLUMNS = (
    ("build, processor s", ",.1f"),
    ("bytes per vector on disk beside the vectors", ",.0f"),
    ("opening, s", ".3f"),
    ("memory at opening, own, MB", ",.1f"),
    ("search effort, probes", ".0f"),
    ("recall@10", ".3f"),
    ("ms per query and thread", ".3f"),
    ("1% selected, recall@10", ".3f"),
    ("1% selected, ms per query and thread", ".3f"),
)


def lay_out_indexes(record: Mapping[str, Any]) -> str:
    """A row for each size and index; what an index does not have is a dash."""
    figures = record["figures"]
    rows = [list(_HEAD)]
    for key in (key for key in figures if key.endswith(", build, s")):
        size, _, subject = key.removesuffix(", build, s").rpartition(", ")
        cells = []
        for column, form in _COLUMNS:
            value = figures.get(f"{size}, {subject}, {column}")
            absent = value is None or (column == "search effort, probes" and not value)
            cells.append("-" if absent else f"{max(value, 0.0):{form}}")
        rows.append([subject, size, *cells])
    if len(rows) == 1:
        raise KeyError("SIZE, INDEX, build, s")
    return make_table(rows) + f"\n\n{describe_source(record)}"


_CHANGES = (
    ("adding 1,000 vectors, until found by a server, s", "add 1000, until found, s", ".2f"),
    ("until on disk, s", "add 1000, until on disk, s", ".2f"),
    ("removing 1,000, until found, s", "remove 1000, until found, s", ".2f"),
    ("metadata of 1,000, until found, s", "update 1000, until found, s", ".2f"),
    ("opening the gallery to write, s", "opening by the writer, s", ".2f"),
    ("search without changes, ms", "search without changes, ms", ".2f"),
    ("with these changes, ms", "search with changes, ms", ".2f"),
    ("1% selected, without, ms", "search without changes, 1% selected, ms", ".2f"),
    ("with, ms", "search with changes, 1% selected, ms", ".2f"),
    ("merging them, s", "compact, s", ",.0f"),
)


def lay_out_changes(record: Mapping[str, Any]) -> str:
    """A row for each size and index; what was not measured is a dash."""
    figures = record["figures"]
    rows = [["gallery", *(name for name, _, _ in _CHANGES)]]
    for key in (key for key in figures if key.endswith(", opening, s")):
        label = key.removesuffix(", opening, s")
        cells = [figures.get(f"{label}, {name}") for _, name, _ in _CHANGES]
        shown = ["-" if cell is None else f"{cell:{form}}" for cell, (_, _, form) in zip(cells, _CHANGES, strict=True)]
        rows.append([label, *shown])
    if len(rows) == 1:
        raise KeyError("SIZE, INDEX, opening, s")
    return make_table(rows) + f"\n\n{describe_source(record)}"
