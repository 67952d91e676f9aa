"""Ranks of the right answers, through the gallery's own search.

Notation: q queries, E joint-embedding width, N gallery size, r relevant items of a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from asymcir_server import Gallery
from numpy.typing import NDArray

from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.retrieval.metrics import NOT_FOUND, average_precision, precision_at

_CHUNK = 64  # queries whose whole rankings are in memory at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Rankings:
    """Where every relevant item of q queries stands.

    Attributes:
        ranks: q times [r], from 1, ascending.
    """

    ranks: Sequence[NDArray[np.int64]]

    def found(self, k: int) -> NDArray[np.float64]:
        """Return 1 for queries with a relevant item among the first k, else 0: [q]."""
        return np.array([float(ranks[0] <= k) for ranks in self.ranks])

    def precisions(self, k: int) -> NDArray[np.float64]:
        """P@k of each query: [q]."""
        return np.array([precision_at(ranks, k) for ranks in self.ranks])

    def average_precisions(self) -> NDArray[np.float64]:
        """AP of each query over the whole gallery: [q]."""
        return np.array([average_precision(ranks) for ranks in self.ranks])


def rank_first_answer(
    queries: NDArray[np.float32],
    answers: Sequence[frozenset[str]],
    excluded: Sequence[frozenset[str]],
    gallery: Gallery,
    top_k: int,
) -> NDArray[np.int64]:
    """Rank the best placed of each query's right answers.

    Args:
        queries: [q, E], L2-normalised.
        answers: q sets of ids, any of which is right.
        excluded: q sets of ids that are taken out of the gallery.
        gallery: searched.
        top_k: hits looked at.

    Returns:
        [q], from 1; NOT_FOUND where no right answer is among the hits.
    """
    ranks = np.full(len(queries), NOT_FOUND, dtype=np.int64)
    alike: dict[frozenset[str], list[int]] = {}
    for number, ids in enumerate(excluded):
        alike.setdefault(ids, []).append(number)
    for ids, numbers in alike.items():
        hits = gallery.search(queries[numbers], top_k, sorted(ids)).ids
        for number, found in zip(numbers, hits, strict=True):
            right = [place for place, identity in enumerate(found, start=1) if identity in answers[number]]
            if right:
                ranks[number] = right[0]
    return ranks


def rank_all_relevant(queries: NDArray[np.float32], relevant: Sequence[frozenset[str]], gallery: Gallery) -> Rankings:
    """Rank every relevant item of each query in the whole gallery.

    Args:
        queries: [q, E], L2-normalised.
        relevant: q sets of ids.
        gallery: searched to its end.

    Raises:
        BenchmarkError: a query has no relevant item, or the gallery does not hold one.
    """
    ranks: list[NDArray[np.int64]] = []
    for start in range(0, len(queries), _CHUNK):
        hits = gallery.search(queries[start : start + _CHUNK], gallery.size).ids
        for found, wanted in zip(hits, relevant[start : start + _CHUNK], strict=True):
            places = [place for place, identity in enumerate(found, start=1) if identity in wanted]
            if not wanted or len(places) != len(wanted):
                raise BenchmarkError(
                    f"expected {len(wanted)} relevant items of a query in the gallery {gallery.folder} and at least "
                    f"one, found {len(places)}: build it from the list that the data set carries"
                )
            ranks.append(np.array(places, dtype=np.int64))
    return Rankings(ranks=ranks)
