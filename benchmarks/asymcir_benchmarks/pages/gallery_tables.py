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
