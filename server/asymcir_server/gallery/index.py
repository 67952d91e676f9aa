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


def write_index(vectors: NDArray[np.float32], path: Path) -> None:
    """Build the exact inner-product index of vectors [N, E], usually mapped from disk, and write it.

    Raises:
        OSError: it cannot be written.
    """
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), _CHUNK_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + _CHUNK_ROWS]))
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as exc:  # FAISS says so when the disk is full
        raise OSError(f"FAISS cannot write {path}") from exc


class ReadOnlyIndex:
    """A FAISS index that can only be searched: adding to or removing from a snapshot is not even offered.

    Attributes:
        size: N.
        width: E.
    """

    def __init__(self, path: Path) -> None:
        """Read the index.

        Raises:
            BundleError: FAISS cannot read it.
        """
        try:
            self._index = faiss.read_index(str(path))
        except RuntimeError as exc:
            raise BundleError(f"FAISS cannot read {path}: build the gallery again") from exc
        self.size = int(self._index.ntotal)
        self.width = int(self._index.d)

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
        parameters = None
        if len(excluded):
            # Both selectors must outlive the search: FAISS keeps bare pointers to them.
            listed = faiss.IDSelectorBatch(excluded)
            selector = faiss.IDSelectorNot(listed)
            parameters = faiss.SearchParameters()
            parameters.sel = selector
        scores, rows = self._index.search(np.ascontiguousarray(query, dtype=np.float32), depth, params=parameters)
        return scores, rows


def measure_recall(index: ReadOnlyIndex, vectors: NDArray[np.float32], *, seed: int = 0) -> float:
    """Measure recall@10 against brute force in NumPy, on a sample of the gallery's own vectors with noise.

    An answer counts when its true score reaches the tenth best, so that equal pictures cannot be missed by order.

    Args:
        index: over `vectors`.
        vectors: [N, E].
        seed: of sample and noise.
    """
    generator = np.random.default_rng(seed)
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
