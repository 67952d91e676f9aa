"""Filters on the metadata of pictures: typed columns, a filter as SQL, the rows that it selects, hits by item.

Keys and values of metadata and of filters are data. They reach SQLite as bound parameters only.
"""

from asymcir_server.gallery.filters.columns import (
    MAX_COLUMNS,
    Column,
    Columns,
    KeyCounter,
    insert_fields,
    join_columns,
    read_columns,
    widen_columns,
    write_fields,
)
from asymcir_server.gallery.filters.items import DEFAULT_ITEM_COLUMN, explain_item, read_item, search_items
from asymcir_server.gallery.filters.selection import Selections
from asymcir_server.gallery.filters.translation import FILTER_LIMITS, FilterLimits, translate

__all__ = [
    "Column",
    "Columns",
    "DEFAULT_ITEM_COLUMN",
    "FILTER_LIMITS",
    "FilterLimits",
    "KeyCounter",
    "MAX_COLUMNS",
    "Selections",
    "explain_item",
    "insert_fields",
    "join_columns",
    "read_columns",
    "read_item",
    "search_items",
    "translate",
    "widen_columns",
    "write_fields",
]
