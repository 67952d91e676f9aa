"""The exact index of a snapshot, and the measurement of its recall."""

from pathlib import Path

import faiss
import numpy as np
from asymcir_common import BundleError
from numpy.typing import NDArray

INDEX_KIND = "flat-ip"
RECALL_DEPTH = 10
RECALL_SAMPLE = 256
"""Queries on which recall is measured at every build."""

MIN_RECALL = 0.999
"""An exact index below this is broken, and the build fails."""

_CHUNK_ROWS = 16_384
_TIE_TOLERANCE = 1e-5  # summation order differs between FAISS and NumPy; equal pictures tie exactly


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
        self, query: NDArray[np.float32], top_k: int, excluded_rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the rows of the largest inner product.

        Args:
            query: [b, E].
            top_k: at most this many; fewer when the index, less the excluded rows, holds fewer.
            excluded_rows: distinct rows that must not be answered.

        Returns:
            scores [b, k] and rows [b, k], best first.
        """
        excluded = np.empty(0, np.int64) if excluded_rows is None else excluded_rows
        depth = min(top_k, self.size - len(excluded))
        if depth <= 0:
            return np.empty((len(query), 0), np.float32), np.empty((len(query), 0), np.int64)
        query = np.ascontiguousarray(query, dtype=np.float32)
        if query.shape[1] != self.width:  # FAISS would read past the rows
            raise ValueError(f"expected queries [b, {self.width}], got {list(query.shape)}")
        scores = np.empty((len(query), depth), np.float32)
        rows = np.empty((len(query), depth), np.int64)
        # Both selectors must outlive the search: FAISS keeps bare pointers to them.
        listed = faiss.IDSelectorBatch(excluded) if len(excluded) else None
        selector = None if listed is None else faiss.IDSelectorNot(listed)
        # What IndexFlatIP.search calls, on vectors that FAISS does not own.
        faiss.knn_inner_product(
            faiss.swig_ptr(query), faiss.swig_ptr(self._vectors), self.width, len(query), self.size, depth,
            faiss.swig_ptr(scores), faiss.swig_ptr(rows), selector,
        )  # fmt: skip
        return scores, rows


def measure_recall(index: ReadOnlyIndex, vectors: NDArray[np.float32]) -> float:
    """Measure recall@10 against brute force in NumPy, on a sample of the gallery's own vectors with noise.

    An answer counts when its true score reaches the tenth best, so that equal pictures cannot be missed by order.

    Args:
        index: over `vectors`.
        vectors: [N, E].
    """
    generator = np.random.default_rng(0)
    sample = np.sort(generator.choice(len(vectors), size=min(RECALL_SAMPLE, len(vectors)), replace=False))
    noise = generator.standard_normal((len(sample), vectors.shape[1])) / np.sqrt(vectors.shape[1])
    queries = (vectors[sample] + 0.5 * noise).astype(np.float32)  # [q, E]
    depth = min(RECALL_DEPTH, len(vectors))
    best = np.empty((len(queries), 0), dtype=np.float32)
    for start in range(0, len(vectors), _CHUNK_ROWS):
        scores = queries @ vectors[start : start + _CHUNK_ROWS].T
        best = np.sort(np.concatenate([best, scores], axis=1), axis=1)[:, -depth:]
    threshold = best[:, 0] - _TIE_TOLERANCE  # [q], the tenth best score
    _, rows = index.search(queries, depth)
    true_scores = np.einsum("qke,qe->qk", vectors[rows], queries)
    distinct = np.mean([len(set(row.tolist())) / depth for row in rows])  # one row answered twice is no recall
    return float(np.mean(true_scores >= threshold[:, None]) * distinct)
