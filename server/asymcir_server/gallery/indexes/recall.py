"""Recall against brute force: the queries it is measured on, their true answers, and what an index finds of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.indexes.selectors import RemovedRows

RECALL_DEPTH = 10
RECALL_SAMPLE = 256
"""Queries on which recall is measured at every build, where none are given."""

MAX_RECALL_QUERIES = 1024
"""Of those given, drawn evenly: recall is then known to 0.5% (two standard errors at 0.98)."""

MIN_RECALL = 0.999
"""An exact index below this is broken, and the build fails."""

SAMPLED = "sampled vectors with noise"
GIVEN = "held-out composed queries"

_CHUNK_ROWS = 16_384
_TIE_TOLERANCE = 1e-5  # summation order differs between FAISS and NumPy; equal pictures tie exactly


class SearchIndex(Protocol):
    """What every kind of index does; see `MappedIndex.search`."""

    size: int
    width: int

    def search(
        self,
        query: NDArray[np.float32],
        top_k: int,
        excluded_rows: NDArray[np.int64] | None = None,
        selection: NDArray[np.int64] | None = None,
        *,
        removed: RemovedRows | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the rows of the largest inner product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallCheck:
    """Queries with what must be reached.

    Attributes:
        queries: [q, E].
        thresholds: [q], the true score of the tenth best, less what rounding may take.
        depth: 10, or N where that is less.
        source: SAMPLED or GIVEN.
    """

    queries: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    depth: int
    source: str

    def measure(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> tuple[float, float]:
        """Return the recall@10 of some answers, and its standard error over the queries.

        An answer counts when its true score reaches the tenth best, so that equal pictures cannot be missed by order.

        Args:
            rows: [q, depth], what an index answers.
            vectors: [N, E].
        """
        true_scores = np.einsum("qke,qe->qk", vectors[rows], self.queries)
        distinct = np.array([len(set(row.tolist())) / self.depth for row in rows])  # one row twice is no recall
        recalls = np.mean(true_scores >= self.thresholds[:, None], axis=1) * distinct  # [q]
        return float(recalls.mean()), float(recalls.std() / np.sqrt(len(recalls)))


def make_check(vectors: NDArray[np.float32], queries: str | Path | None = None) -> RecallCheck:
    """Choose the queries and search them by brute force in NumPy.

    Args:
        vectors: [N, E], mapped.
        queries: .npy, [q, E] float32; None: a sample of the gallery's own vectors with noise.

    Raises:
        GalleryBuildError: the queries cannot be read, or are of another form.
    """
    asked = _sample_queries(vectors) if queries is None else _read_queries(Path(queries), vectors.shape[1])
    depth = min(RECALL_DEPTH, len(vectors))
    best = np.empty((len(asked), 0), dtype=np.float32)
    for start in range(0, len(vectors), _CHUNK_ROWS):
        scores = asked @ vectors[start : start + _CHUNK_ROWS].T
        kept = min(depth, scores.shape[1])
        scores = np.partition(scores, scores.shape[1] - kept, axis=1)[:, -kept:]
        best = np.sort(np.concatenate([best, scores], axis=1), axis=1)[:, -depth:]
    return RecallCheck(
        queries=asked,
        thresholds=best[:, 0] - np.float32(_TIE_TOLERANCE),
        depth=depth,
        source=SAMPLED if queries is None else GIVEN,
    )


def _sample_queries(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    generator = np.random.default_rng(0)
    sample = np.sort(generator.choice(len(vectors), size=min(RECALL_SAMPLE, len(vectors)), replace=False))
    noise = generator.standard_normal((len(sample), vectors.shape[1])) / np.sqrt(vectors.shape[1])
    return np.asarray(vectors[sample] + 0.5 * noise, dtype=np.float32)  # [q, E]


def _read_queries(path: Path, width: int) -> NDArray[np.float32]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise GalleryBuildError(f"cannot read the recall queries {path}: {exc}") from exc
    if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.ndim != 2 or found.shape[1] != width:
        form = f"{list(found.shape)} {found.dtype}" if isinstance(found, np.ndarray) else "several arrays"
        raise GalleryBuildError(f"expected recall queries [q, {width}] float32 in {path}, got {form}")
    step = max(1, -(-len(found) // MAX_RECALL_QUERIES))
    queries = np.ascontiguousarray(found[::step])
    if not len(queries) or not np.isfinite(queries).all():
        raise GalleryBuildError(f"expected finite recall queries in {path}, at least one: {len(queries)} are there")
    return queries
