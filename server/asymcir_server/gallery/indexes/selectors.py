"""Which rows a search may answer: sorted arrays of rows, and FAISS's selectors made from them."""

import contextlib
from collections.abc import Iterator

import faiss
import numpy as np
from numpy.typing import NDArray


def allowed_rows(
    size: int, excluded: NDArray[np.int64] | None, selection: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """Return the rows of a selection that are not excluded, sorted and distinct; None where there is no selection.

    Raises:
        ValueError: the selection names a row outside the index.
    """
    if selection is None:
        return None
    rows = np.asarray(selection, dtype=np.int64)
    if not (rows[1:] > rows[:-1]).all():  # as a rule they are in order, and need not be sorted for every query
        rows = np.unique(rows)
    if len(rows) and (rows[0] < 0 or rows[-1] >= size):  # FAISS would read past the vectors
        raise ValueError(f"expected rows from 0 to {size - 1} in the selection, got {rows[0]} to {rows[-1]}")
    return rows if excluded is None or not len(excluded) else np.setdiff1d(rows, excluded, assume_unique=False)


class RemovedRows:
    """Rows of an index that are gone, with the bitmap of the others, made once for all searches.

    Attributes:
        rows: sorted and distinct, [n].
    """

    def __init__(self, size: int, rows: NDArray[np.int64]) -> None:
        """Prepare.

        Args:
            size: N.
            rows: each from 0 to N - 1, in any order.
        """
        self.rows = np.unique(np.asarray(rows, dtype=np.int64))
        bits = np.ones(size, dtype=bool)
        bits[self.rows] = False
        self.packed = np.packbits(bits, bitorder="little")

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.rows)

    def drop_from(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of some rows that are not gone."""
        if not len(self.rows) or not len(rows):
            return rows
        places = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.asarray(rows[self.rows[places] != rows])


def excluded_but(excluded: NDArray[np.int64] | None, removed: RemovedRows | None) -> NDArray[np.int64]:
    """Return the excluded rows that are not removed already: [n]."""
    rows = np.empty(0, np.int64) if excluded is None else np.asarray(excluded, dtype=np.int64)
    return rows if removed is None else removed.drop_from(rows)


class Selector:
    """A selector of FAISS, with the arrays and selectors that it keeps bare pointers to.

    Attributes:
        faiss: to hand to a search; None where every row may be answered.
    """

    def __init__(
        self,
        size: int,
        excluded: NDArray[np.int64] | None,
        allowed: NDArray[np.int64] | None,
        removed: RemovedRows | None = None,
    ) -> None:
        """Make it.

        Args:
            size: N.
            excluded: rows that must not be answered; not looked at where `allowed` is given.
            allowed: sorted rows that may be answered; None: all.
            removed: rows that are gone; not looked at where `allowed` is given.
        """
        self._kept: list[object] = []
        self.faiss = None
        if allowed is not None and len(allowed) < size:
            bits = np.zeros(size, dtype=bool)
            bits[allowed] = True
            packed = np.packbits(bits, bitorder="little")
            self.faiss = faiss.IDSelectorBitmap(packed)
            self._kept.append(packed)
        elif allowed is None:
            if excluded is not None and len(excluded):
                listed = faiss.IDSelectorBatch(np.ascontiguousarray(excluded, dtype=np.int64))
                self.faiss = faiss.IDSelectorNot(listed)
                self._kept.append(listed)
            if removed is not None and len(removed):
                left = faiss.IDSelectorBitmap(removed.packed)
                self._kept += [left, removed]
                if self.faiss is not None:
                    self._kept.append(self.faiss)
                self.faiss = left if self.faiss is None else faiss.IDSelectorAnd(left, self.faiss)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS compute on the calling thread alone; OpenMP keeps this number for each thread, not for the process.

    SQ8, RaBitQ and inner products by row would share one query among all cores, which costs more than it saves where
    a server answers as many queries as it has cores.
    """
    before = faiss.omp_get_max_threads()
    if before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
