"""Exact search over the mapped vectors of a snapshot, and true inner products of some of its rows."""

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
from asymcir_common import BundleError
from numpy.typing import NDArray

from asymcir_server.gallery.indexes.selectors import RemovedRows, Selector, allowed_rows, excluded_but, one_thread

_CHUNK_ROWS = 1 << 18  # of a selection: bounds its memory, and no selection of a small gallery is cut


class ReadOnlyIndex:
    """The exact inner-product search of FAISS over vectors that stay in their file, mapped into memory.

    Nothing is copied: the pages are those of the file cache, shared by every process that opens the snapshot.

    Attributes:
        size: N.
        width: E.
    """

    def __init__(self, path: Path) -> None:
        """Map the vectors.

        Args:
            path: .npy, [N, E] float32.

        Raises:
            BundleError: it cannot be read, or holds something else.
        """
        try:
            self._vectors: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as exc:
            raise BundleError(f"cannot read the vectors {path}: {exc}; build the gallery again") from exc
        if self._vectors.ndim != 2 or self._vectors.dtype != np.float32 or not self._vectors.flags.c_contiguous:
            raise BundleError(
                f"expected vectors [N, E] float32 in {path}, got {list(self._vectors.shape)} {self._vectors.dtype}: "
                "build the gallery again"
            )
        self.size, self.width = self._vectors.shape

    def search(
        self,
        query: NDArray[np.float32],
        top_k: int,
        excluded_rows: NDArray[np.int64] | None = None,
        selection: NDArray[np.int64] | None = None,
        *,
        removed: RemovedRows | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the rows of the largest inner product.

        Args:
            query: [b, E].
            top_k: at most this many; fewer when the index, less the excluded rows, holds fewer.
            excluded_rows: distinct rows that must not be answered.
            selection: sorted rows, of which alone may be answered; None: all.
            removed: rows that are gone; a selection must not hold them.

        Returns:
            scores [b, k] and rows [b, k], best first.

        Raises:
            ValueError: queries of another width, or a selection of rows that are not there.
        """
        allowed = allowed_rows(self.size, excluded_rows, selection)
        if allowed is not None:
            return self._search_rows(query, top_k, allowed)
        excluded = excluded_but(excluded_rows, removed)
        depth = min(top_k, self.size - len(excluded) - (0 if removed is None else len(removed)))
        if depth <= 0:
            return np.empty((len(query), 0), np.float32), np.empty((len(query), 0), np.int64)
        query = self.check_query(query)
        scores = np.empty((len(query), depth), np.float32)
        rows = np.empty((len(query), depth), np.int64)
        selector = Selector(self.size, excluded, None, removed)  # must outlive the search: FAISS keeps bare pointers
        # What IndexFlatIP.search calls, on vectors that FAISS does not own.
        faiss.knn_inner_product(
            faiss.swig_ptr(query), faiss.swig_ptr(self._vectors), self.width, len(query), self.size, depth,
            faiss.swig_ptr(scores), faiss.swig_ptr(rows), selector.faiss,
        )  # fmt: skip
        return scores, rows

    def check_query(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return queries [b, E] as FAISS reads them.

        Raises:
            ValueError: of another width: FAISS would read past the rows.
        """
        query = np.ascontiguousarray(query, dtype=np.float32)
        if query.ndim != 2 or query.shape[1] != self.width:
            raise ValueError(f"expected queries [b, {self.width}], got {list(query.shape)}")
        return query

    def rank_rows(
        self, query: NDArray[np.float32], rows: NDArray[np.int64], top_k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rank some rows; see `rank_rows`."""
        return rank_rows(self._vectors, query, rows, top_k)

    def read_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors [n, E]."""
        return np.asarray(self._vectors[rows])

    def read_chunks(self, chunk_rows: int) -> Iterator[NDArray[np.float32]]:
        """Yield all vectors in their order, [n, E] with n at most `chunk_rows`."""
        for start in range(0, self.size, chunk_rows):
            yield np.ascontiguousarray(self._vectors[start : start + chunk_rows])

    def _search_rows(
        self, query: NDArray[np.float32], top_k: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        depth = max(0, min(top_k, len(rows)))
        query = self.check_query(query)
        scores = np.empty((len(query), depth), np.float32)
        found = np.empty((len(query), depth), np.int64)
        if depth:
            for number, one in enumerate(query):
                scores[number], found[number] = self.rank_rows(one, rows, depth)
        return scores, found


def rank_rows(
    vectors: NDArray[np.float32], query: NDArray[np.float32], rows: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rank some rows of vectors by their true inner product with one query; equal scores by row.

    Args:
        vectors: [N, E], C-contiguous.
        query: [E].
        rows: [n], each from 0 to N - 1.
        top_k: at most this many.

    Returns:
        scores [k] and rows [k], best first, k the lesser of n and top_k.
    """
    best_scores, best_rows = np.empty(0, np.float32), np.empty(0, np.int64)
    query = np.ascontiguousarray(query, dtype=np.float32)
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = np.ascontiguousarray(rows[start : start + _CHUNK_ROWS], dtype=np.int64)
        scores = np.empty(len(chunk), np.float32)
        with one_thread():
            faiss.fvec_inner_products_by_idx(
                faiss.swig_ptr(scores), faiss.swig_ptr(query), faiss.swig_ptr(vectors),
                faiss.swig_ptr(chunk), vectors.shape[1], 1, len(chunk),
            )  # fmt: skip
        scores, chunk = np.concatenate([best_scores, scores]), np.concatenate([best_rows, chunk])
        if len(chunk) > 4 * top_k:  # what ties with the last of them stays, so that the order by row decides
            least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
            scores, chunk = scores[scores >= least], chunk[scores >= least]
        order = np.lexsort((chunk, -scores))[:top_k]
        best_scores, best_rows = scores[order], chunk[order]
    return best_scores, best_rows
