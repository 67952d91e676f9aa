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


class Selector:
    """A selector of FAISS, with the arrays and selectors that it keeps bare pointers to.

    Attributes:
        faiss: to hand to a search; None where every row may be answered.
    """

    def __init__(self, size: int, excluded: NDArray[np.int64] | None, allowed: NDArray[np.int64] | None) -> None:
        """Make it.

        Args:
            size: N.
            excluded: rows that must not be answered; not looked at where `allowed` is given.
            allowed: sorted rows that may be answered; None: all.
        """
        self._kept: list[object] = []
        self.faiss = None
        if allowed is not None and len(allowed) < size:
            bits = np.zeros(size, dtype=bool)
            bits[allowed] = True
            packed = np.packbits(bits, bitorder="little")
            self.faiss = faiss.IDSelectorBitmap(packed)
            self._kept.append(packed)
        elif allowed is None and excluded is not None and len(excluded):
            listed = faiss.IDSelectorBatch(np.ascontiguousarray(excluded, dtype=np.int64))
            self.faiss = faiss.IDSelectorNot(listed)
            self._kept.append(listed)


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
