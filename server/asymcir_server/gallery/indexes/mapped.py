"""Search in a mapped index of codes, with true inner products.

FAISS's `add` and `remove_ids` on a mapped index end the process. So nothing here hands the index out: it lives in a
function (`_open_probe`) that searches and does nothing else.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from asymcir_common import BundleError
from numpy.typing import NDArray

from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.indexes.kinds import HNSW, IVF_KINDS, IVF_RABITQ, SQ8, Effort
from asymcir_server.gallery.indexes.selectors import RemovedRows, Selector, allowed_rows, excluded_but, one_thread

_Probe = Callable[[NDArray[np.float32], int, int, Any], NDArray[np.int64]]
"""query [1, E], how many, probes, selector -> their rows, -1 where there are fewer."""

_DEPTH = 10  # the hits that an effort is measured for
_DEPTH_EXPONENT = 0.6  # a hundred hits take four times the probes of ten
_RETRY_FACTOR = 8
_GRAPH_SHARE = 8  # below this share of the centroids the graph finds them faster than all are compared
_EXACT_BYTES = {IVF_RABITQ: 32 << 20}
_DEFAULT_EXACT_BYTES = 8 << 20
_EXACT_SHARE = {HNSW: 0.1, SQ8: 0.25}
"""A selection up to these sizes is searched exactly, which is faster there, or all that is right: a graph in which few
nodes may be answered loses its way."""

_CLASSES = {
    "sq8": "IndexScalarQuantizer",
    "hnsw": "IndexHNSWSQ",
    "ivf-sq8": "IndexIVFScalarQuantizer",
    "ivf-rabitq": "IndexIVFRaBitQFastScan",
}


class MappedIndex:
    """Candidates from an index of codes, ranked by their true inner product with the mapped vectors.

    A query is computed on one thread. Safe to share between threads.

    Attributes:
        kind: of `kinds.KINDS`.
        effort: how hard a search looks.
        size: N.
        width: E.
        lists: of an IVF index, else 0.
    """

    def __init__(self, path: Path, kind: str, vectors: ReadOnlyIndex, effort: Effort) -> None:
        """Map the index.

        Args:
            path: what `training.write_index` wrote.
            kind: its kind.
            vectors: of the same snapshot.
            effort: as measured.

        Raises:
            BundleError: the file cannot be read, or holds another index.
        """
        self.kind = kind
        self.effort = effort
        self.size, self.width = vectors.size, vectors.width
        self._vectors = vectors
        self._probe, self.lists = _open_probe(path, kind, vectors)
        exact_bytes = _EXACT_BYTES.get(kind, _DEFAULT_EXACT_BYTES)
        self._exact_rows = max(exact_bytes // (4 * self.width), int(_EXACT_SHARE.get(kind, 0.0) * self.size))

    def search(
        self,
        query: NDArray[np.float32],
        top_k: int,
        excluded_rows: NDArray[np.int64] | None = None,
        selection: NDArray[np.int64] | None = None,
        *,
        removed: RemovedRows | None = None,
        effort: Effort | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the rows of the largest inner product: nearly always, to the recall that the manifest says.

        Args:
            query: [b, E].
            top_k: at most this many; fewer when the index, less the excluded rows, holds fewer.
            excluded_rows: distinct rows that must not be answered.
            selection: sorted rows, of which alone may be answered; None: all.
            removed: rows that are gone; a selection must not hold them.
            effort: another than the index's own.

        Returns:
            scores [b, k], true inner products, and rows [b, k], best first, equal scores by row.

        Raises:
            ValueError: queries of another width, or a selection of rows that are not there.
            BundleError: the index is damaged.
        """
        query = self._vectors.check_query(query)
        allowed = allowed_rows(self.size, excluded_rows, selection)
        excluded = excluded_but(excluded_rows, removed)
        gone = 0 if removed is None else len(removed)
        answerable = self.size - len(excluded) - gone if allowed is None else len(allowed)
        depth = max(0, min(top_k, answerable))
        if allowed is not None and len(allowed) <= self._exact_rows:
            return self._vectors.search(query, top_k, None, allowed)
        scores, rows = np.empty((len(query), depth), np.float32), np.empty((len(query), depth), np.int64)
        if depth == 0:
            return scores, rows
        selector = Selector(self.size, excluded, allowed, removed)
        effort = effort or self.effort
        for number in range(len(query)):
            found = self._find(query[number : number + 1], depth, answerable, selector, effort)
            if found is None:
                found = allowed
                if found is None:
                    found = np.setdiff1d(np.arange(self.size, dtype=np.int64), excluded)
                    found = found if removed is None else removed.drop_from(found)
            scores[number], rows[number] = self._vectors.rank_rows(query[number], found, depth)
        return scores, rows

    def _find(
        self, query: NDArray[np.float32], depth: int, answerable: int, selector: Selector, effort: Effort
    ) -> NDArray[np.int64] | None:
        """Return at least `depth` rows, looking harder where there are fewer; None where that is in vain."""
        count = min(max(depth, _DEPTH) * effort.candidates, answerable)
        # Rows that may be answered are so much rarer; more hits lie so much further out.
        scale = (self.size / answerable) * max(1.0, depth / _DEPTH) ** _DEPTH_EXPONENT
        for factor in (1, _RETRY_FACTOR):
            rows = self._probe(query, count, math.ceil(effort.probes * scale * factor), selector.faiss)
            rows = rows[rows >= 0]
            if len(rows) and rows.max() >= self.size:
                raise BundleError(
                    f"the index answers with row {rows.max()} of {self.size}: it is damaged, build the gallery again"
                )
            if len(rows) >= depth:
                return rows
        return None


def _open_probe(path: Path, kind: str, vectors: ReadOnlyIndex) -> tuple[_Probe, int]:
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as exc:
        reason = str(exc).splitlines()[-1] if str(exc) else "FAISS refuses it"
        raise BundleError(f"cannot read the index {path}: {reason}; build the gallery again") from exc
    found = (type(index).__name__, index.ntotal, index.d, index.metric_type)
    expected = (_CLASSES[kind], vectors.size, vectors.width, faiss.METRIC_INNER_PRODUCT)
    if found != expected:
        raise BundleError(f"expected an index {expected} in {path}, got {found}: build the gallery again")
    if kind in IVF_KINDS:
        return _probe_lists(index), int(index.nlist)

    def probe(query: NDArray[np.float32], count: int, probes: int, selector: Any) -> NDArray[np.int64]:
        if kind == HNSW:
            parameters = faiss.SearchParametersHNSW(efSearch=max(probes, count), sel=selector)
        else:
            parameters = faiss.SearchParameters(sel=selector)
        with one_thread():
            return np.asarray(index.search(query, count, params=parameters)[1][0])

    return probe, 0


def _probe_lists(index: Any) -> _Probe:
    """Search the lists of the nearest centroids, which a graph finds where there is one and few are wanted."""
    lists = int(index.nlist)
    quantizer = faiss.downcast_index(index.quantizer)
    graph = isinstance(quantizer, faiss.IndexHNSW)
    flat = faiss.downcast_index(quantizer.storage) if graph else quantizer
    pointer = faiss.swig_ptr

    def probe(query: NDArray[np.float32], count: int, probes: int, selector: Any) -> NDArray[np.int64]:
        probes = max(1, min(probes, lists))
        with one_thread():
            if graph and probes * _GRAPH_SHARE <= lists:
                parameters = faiss.SearchParametersHNSW(efSearch=max(64, 2 * probes))
                nearness, nearest = quantizer.search(query, probes, params=parameters)
            else:
                nearness, nearest = flat.search(query, probes)
            scores = np.empty((1, count), np.float32)
            rows: NDArray[np.int64] = np.empty((1, count), np.int64)
            parameters = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
            index.search_preassigned_c(
                1, pointer(query), count, pointer(nearest), pointer(nearness), pointer(scores), pointer(rows), False,
                parameters,
            )  # fmt: skip
        return np.asarray(rows[0])

    return probe
