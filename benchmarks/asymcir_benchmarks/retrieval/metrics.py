"""Retrieval metrics over ranks.

Notation: q queries.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asymcir_benchmarks.errors import BenchmarkError

NOT_FOUND = np.iinfo(np.int64).max
"""The rank of a query whose answer is not among the hits looked at."""

DRAWS = 1000
_SEED = 0
"""Resamples of the queries behind each interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure and its 95% percentile interval by resampling queries.

    Attributes:
        value: NaN, or infinity for a ratio, where it divides by zero.
        low, high: of the interval; NaN where no resample has a value.
    """

    value: float
    low: float
    high: float


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """R@k: share of queries whose right answer stands among the first k.

    Args:
        ranks: [q], from 1; NOT_FOUND where the answer did not come.
        k: cut.

    Returns:
        In [0, 1]; NaN without queries.
    """
    return float((ranks <= k).mean()) if len(ranks) else float("nan")


def precision_at(ranks: NDArray[np.int64], k: int) -> float:
    """P@k of one query: relevant items among the first k, over k.

    Args:
        ranks: [r], from 1, of every relevant item.
        k: cut.
    """
    return float((ranks <= k).sum()) / k


def average_precision(ranks: NDArray[np.int64]) -> float:
    """AP of one query over the whole ranking: the sum of the precision at each relevant item, over their number.

    Args:
        ranks: [r], from 1, of every relevant item, in any order; NOT_FOUND adds nothing.

    Returns:
        In [0, 1]; NaN without a relevant item.

    Source: Manning, Raghavan and Schuetze, Introduction to Information Retrieval, section 8.4.
    """
    if len(ranks) == 0:
        return float("nan")
    found = np.sort(ranks[ranks != NOT_FOUND])
    return float((np.arange(1, len(found) + 1) / found).sum()) / len(ranks)


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95% percentile interval of the mean of values [q], by resampling queries."""
    rng = np.random.default_rng(_SEED)
    means = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Estimate:
    """mean(ours) - mean(theirs), both measured on the same queries, which are resampled together.

    Args:
        ours, theirs: [q].

    Raises:
        BenchmarkError: not of the same queries.
    """
    _check_paired(ours, theirs)
    low, high = bootstrap_interval(ours - theirs)
    return Estimate(value=float(ours.mean() - theirs.mean()), low=low, high=high)


def paired_ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Estimate:
    """mean(ours) / mean(theirs), both measured on the same queries, which are resampled together.

    Resamples in which the denominator is zero are left out of the interval.

    Args:
        ours, theirs: [q], not negative.

    Raises:
        BenchmarkError: not of the same queries.
    """
    _check_paired(ours, theirs)
    picks = np.random.default_rng(_SEED).integers(len(ours), size=(DRAWS, len(ours)))
    above, below = ours[picks].mean(axis=1), theirs[picks].mean(axis=1)
    usable = below > 0
    low = high = float("nan")
    if usable.any():
        low, high = np.percentile(above[usable] / below[usable], [2.5, 97.5]).tolist()
    return Estimate(value=ratio(float(ours.mean()), float(theirs.mean())), low=low, high=high)


def ratio(above: float, below: float) -> float:
    """Divide; infinity over zero, NaN for zero over zero or where either is NaN."""
    if below:
        return above / below
    return math.inf if above > 0 else float("nan")


def _check_paired(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
    if ours.shape != theirs.shape or ours.ndim != 1 or len(ours) == 0:
        raise BenchmarkError(
            f"expected two figures [q] of the same queries, got {list(ours.shape)} and {list(theirs.shape)}: "
            "evaluate both on one set"
        )
