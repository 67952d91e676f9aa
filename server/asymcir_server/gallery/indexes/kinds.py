"""The kinds of index, what each holds for a vector, which one `auto` takes, and how hard a search looks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asymcir_common import BundleError

from asymcir_server.errors import GalleryBuildError

EXACT = "exact"
SQ8 = "sq8"
HNSW = "hnsw"
IVF_SQ8 = "ivf-sq8"
IVF_RABITQ = "ivf-rabitq"
AUTO = "auto"
KINDS = (EXACT, SQ8, HNSW, IVF_SQ8, IVF_RABITQ)
IVF_KINDS = (IVF_SQ8, IVF_RABITQ)

EXACT_ROWS = 20_000
"""Up to this many vectors `auto` searches exactly: 1 to 3 ms, less than the text encoder takes."""

DEFAULT_MEMORY_BUDGET_BYTES = 1 << 30
DEFAULT_RECALL = 0.98
HNSW_LINKS = 32
"""M: a node has this many links, twice as many on the lowest level. With 16, recall stays below 0.98 (measured)."""

MIN_CENTROID_GRAPH = 2048
"""From this many lists on, the nearest centroids are found by a graph: 0.18 ms of 4096 x 768, against 0.55 ms."""

TRAIN_BYTES = 512 << 20
"""Vectors that the lists are trained on, at most."""

TRAIN_ROWS_PER_LIST = 64
_LEAST_TRAIN_ROWS_PER_LIST = 20
_LEAST_ROWS_PER_LIST = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How hard a search for ten hits looks; more hits, and searches in a part of the gallery, look harder.

    Attributes:
        probes: lists that are read (IVF), or `efSearch` (HNSW); 0 for kinds that have neither.
        candidates: rows per hit whose true inner product is computed, at least 1.
    """

    probes: int
    candidates: int

    def __post_init__(self) -> None:
        if type(self.probes) is not int or type(self.candidates) is not int or self.probes < 0 or self.candidates < 1:
            raise BundleError(
                f"the manifest's search effort cannot be used ({self.probes} probes, {self.candidates} candidates): "
                "build the gallery again"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Which index to build.

    Attributes:
        kind: one of KINDS, or "auto", which chooses by N and the budget.
        recall: recall@10 that the search effort is chosen for, above 0 and at most 1.
        memory_budget_bytes: what "auto" may take for the index beside the mapped vectors.
        recall_queries: .npy, [q, E] float32, composed queries that recall is measured on; None: the gallery's own
            vectors with noise.
    """

    kind: str = AUTO
    recall: float = DEFAULT_RECALL
    memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET_BYTES
    recall_queries: str | Path | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, AUTO):
            raise GalleryBuildError(f"no index kind {self.kind!r}: expected one of {', '.join((AUTO, *KINDS))}")
        if not 0.0 < self.recall <= 1.0:
            raise GalleryBuildError(f"expected a recall above 0 and at most 1, got {self.recall}")
        if self.memory_budget_bytes < 0:
            raise GalleryBuildError(f"expected a memory budget of at least 0 bytes, got {self.memory_budget_bytes}")


def choose_kind(size: int, width: int, memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET_BYTES) -> str:
    """Choose a kind by what it costs: exact while that is fast, SQ8 codes in lists while they fit, else RaBitQ's.

    Args:
        size: N.
        width: E.
        memory_budget_bytes: for the index beside the mapped vectors.
    """
    if size <= EXACT_ROWS:
        return EXACT
    return IVF_SQ8 if estimate_bytes(IVF_SQ8, size, width) <= memory_budget_bytes else IVF_RABITQ


def estimate_bytes(kind: str, size: int, width: int) -> int:
    """Estimate the bytes of an index beside the mapped vectors, within a few percent."""
    codes = {
        EXACT: 0,
        SQ8: width,
        HNSW: width + 4 * 2 * HNSW_LINKS + 16,
        IVF_SQ8: width + 8,
        IVF_RABITQ: width // 8 + 8 + 8,
    }[kind]
    return size * codes + (4 * width * count_lists(size, width) if kind in IVF_KINDS else 0)


def count_lists(size: int, width: int) -> int:
    """Count the lists of an IVF index: about 4 sqrt(N), a power of two where it is large, each with enough to train on.

    Source: FAISS's guidelines, between 4 and 16 sqrt(N).
    """
    wanted = 1 << round(math.log2(4.0 * math.sqrt(size)))
    trained = TRAIN_BYTES // (4 * width * _LEAST_TRAIN_ROWS_PER_LIST)
    return max(1, min(wanted, size // _LEAST_ROWS_PER_LIST, trained))


def efforts(kind: str, size: int, lists: int) -> Iterator[list[Effort]]:
    """Yield series of efforts to try: within a series they grow in probes, from series to series in candidates."""
    if kind == SQ8:
        yield [Effort(probes=0, candidates=candidates) for candidates in (1, 2, 4, 8)]
        return
    most, first = (4096, 16) if kind == HNSW else (lists, 1)
    steps = (first * factor << power for power in range(17) for factor in (1, 3))  # 1, 2, 3, 4, 6, 8, 12, ...
    probes = sorted({min(most, step) for step in steps})
    for candidates in (4, 10, 20, 50) if kind == IVF_RABITQ else (2, 5):
        yield [Effort(probes=count, candidates=candidates) for count in probes]
