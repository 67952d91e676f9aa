"""Several pictures of one item: which item a picture names, and a search that answers each item once."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from asymcir_common.places.rules import check_id
from numpy.typing import NDArray

DEFAULT_ITEM_COLUMN = "item"
_MAX_FIRST_FACTOR = 8

SearchRows = Callable[[int, NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Searches one query: depth and rows that must not be answered to scores [k] and rows [k], best first; fewer than depth
only where there are no more."""


class ItemTable(Protocol):
    """Which rows show which item."""

    def items(self, rows: list[int]) -> dict[int, str]:
        """Map rows to items; rows without one are left out."""

    def item_rows(self, items: list[str]) -> NDArray[np.int64]:
        """Return all rows of some items: [n]."""


def explain_item(metadata: Mapping[str, Any], column: str) -> str | None:
    """Say why a picture's item cannot be used; None where it can, or where there is none.

    Args:
        metadata: of the picture.
        column: the key that names the item; empty for none.
    """
    value = metadata.get(column) if column else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return f"expected a text or a whole number as {column}, got {value!r}; --item-column names another key, or none"
    problem = check_id(str(value))
    return None if problem is None else f"the {column} cannot name an item: {problem}"


def read_item(metadata: Mapping[str, Any], column: str) -> str | None:
    """Return the item that a picture names, None for none; `explain_item` says whether it can be used."""
    value = metadata.get(column) if column else None
    return None if value is None else str(value)


def search_items(
    search: SearchRows, table: ItemTable, top_k: int, excluded: NDArray[np.int64], pictures_per_item: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search until `top_k` items are found or the gallery ends, each by its best picture.

    A round searches without the rows of the items found before, and twice as deep as the one before. So an item of
    hundreds of pictures takes one round, and many of them take few.

    Args:
        search: of one query.
        table: which rows show which item; a row without one is an item by itself.
        top_k: items.
        excluded: rows that must not be answered.
        pictures_per_item: on average, which says how deep the first round has to look.

    Returns:
        scores [k] and rows [k], best first, k at most top_k.
    """
    scores, rows = list[float](), list[int]()
    depth = int(np.ceil(top_k * min(max(pictures_per_item, 1.0), _MAX_FIRST_FACTOR)))
    while True:
        found_scores, found_rows = search(depth, excluded)
        names = table.items(found_rows.tolist())
        seen, alone = set[str](), list[int]()
        for score, row in zip(found_scores.tolist(), found_rows.tolist(), strict=True):
            name = names.get(row)
            if name in seen:
                continue
            if name is None:
                alone.append(row)
            else:
                seen.add(name)
            scores.append(score)
            rows.append(row)
            if len(rows) == top_k:
                break
        if len(rows) == top_k or len(found_rows) < depth:
            ranked = np.argsort(-np.array(scores, np.float32), kind="stable")  # an index may find more in a later round
            return np.array(scores, np.float32)[ranked], np.array(rows, np.int64)[ranked]
        excluded = np.unique(np.concatenate([excluded, table.item_rows(list(seen)), np.array(alone, np.int64)]))
        depth *= 2
