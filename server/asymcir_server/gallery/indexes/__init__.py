"""Indexes of a snapshot: their kinds, how one is built and measured, and the search over mapped files.

`build_index` and `open_index` are what a build and an open gallery call; `SearchIndex` is what both kinds of index do.
"""

from asymcir_server.gallery.indexes.exact import rank_rows
from asymcir_server.gallery.indexes.kinds import EXACT, KINDS, Effort, IndexConfig, choose_kind
from asymcir_server.gallery.indexes.opening import INDEX_NAME, SearchIndex, build_index, open_index
from asymcir_server.gallery.indexes.selectors import RemovedRows

__all__ = [
    "EXACT",
    "Effort",
    "INDEX_NAME",
    "IndexConfig",
    "KINDS",
    "RemovedRows",
    "SearchIndex",
    "build_index",
    "choose_kind",
    "open_index",
    "rank_rows",
]
