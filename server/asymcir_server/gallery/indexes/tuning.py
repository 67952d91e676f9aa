"""How hard a search must look: recall and time at several efforts, and the least that reaches the recall asked for."""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymcir_server.gallery.indexes.kinds import Effort, efforts
from asymcir_server.gallery.indexes.mapped import MappedIndex
from asymcir_server.gallery.indexes.recall import RecallCheck

_LEAST_GAIN = 0.0005
"""Of recall. Two steps of less: more probes of the same candidates bring nothing."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One effort.

    Attributes:
        effort: what was tried.
        recall_at_10: against brute force.
        standard_error: of the recall, over the queries.
        ms_per_query: of processor time on one thread, which other work on the machine does not lengthen much.
    """

    effort: Effort
    recall_at_10: float
    standard_error: float
    ms_per_query: float

    def to_record(self) -> dict[str, Any]:
        """Return it for the manifest."""
        return {
            **asdict(self.effort),
            "recall_at_10": round(self.recall_at_10, 5),
            "standard_error": round(self.standard_error, 5),
            "ms_per_query": round(self.ms_per_query, 4),
        }


def measure_curve(
    index: MappedIndex, vectors: NDArray[np.float32], check: RecallCheck, recall: float
) -> tuple[list[CurvePoint], CurvePoint]:
    """Try efforts from the least on, and one step past the recall asked for.

    Args:
        index: over `vectors`.
        vectors: [N, E], mapped.
        check: queries and their true answers.
        recall: recall@10 to reach.

    Returns:
        The curve in the order tried, and the point to search with: the first that reaches `recall` with one standard
        error to spare, else the best. Without the error to spare the first to reach it would be one that chance
        favours, and fall short on other queries.
    """
    curve: list[CurvePoint] = []
    chosen: CurvePoint | None = None
    for series in efforts(index.kind, index.size, index.lists):
        for point in _measure_series(index, vectors, check, series):
            curve.append(point)
            if chosen is not None:
                return curve, chosen
            if point.recall_at_10 - point.standard_error >= recall:
                chosen = point
        if chosen is not None:
            return curve, chosen
    best = max(curve, key=lambda point: point.recall_at_10)
    if best.recall_at_10 < recall:
        _log.warning(
            "no search effort of the %s index reaches recall@10 %.3f: the best found is %.4f, which is used; "
            "take another --index or a lower --recall",
            index.kind, recall, best.recall_at_10,
        )  # fmt: skip
    return curve, best


def measure_point(index: MappedIndex, vectors: NDArray[np.float32], check: RecallCheck, effort: Effort) -> CurvePoint:
    """Search every query, one at a time as a server does."""
    rows = np.empty((len(check.queries), check.depth), np.int64)
    index.search(check.queries[:1], check.depth, effort=effort)
    started_s = time.thread_time()
    for number in range(len(check.queries)):
        rows[number] = index.search(check.queries[number : number + 1], check.depth, effort=effort)[1][0]
    elapsed_s = time.thread_time() - started_s
    recall, error = check.measure(rows, vectors)
    return CurvePoint(
        effort=effort,
        recall_at_10=recall,
        standard_error=error,
        ms_per_query=elapsed_s * 1000.0 / len(check.queries),
    )


def _measure_series(
    index: MappedIndex, vectors: NDArray[np.float32], check: RecallCheck, series: list[Effort]
) -> Iterator[CurvePoint]:
    best, idle = 0.0, 0
    for effort in series:
        point = measure_point(index, vectors, check, effort)
        yield point
        idle = idle + 1 if point.recall_at_10 < best + _LEAST_GAIN else 0
        best = max(best, point.recall_at_10)
        if idle == 2:
            return
