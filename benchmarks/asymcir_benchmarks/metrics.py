"""Retrieval metrics over ranks.

Notation: q queries.
"""

import numpy as np
from numpy.typing import NDArray

NOT_FOUND = np.iinfo(np.int64).max
"""The rank of a query whose answer is not among the hits looked at."""


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """R@k: share of queries whose right answer stands among the first k.

    Args:
        ranks: [q], from 1; NOT_FOUND where the answer did not come.
        k: cut.

    Returns:
        In [0, 1]; NaN without queries.
    """
    return float((ranks <= k).mean()) if len(ranks) else float("nan")


def bootstrap_interval(values: NDArray[np.float64], *, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95% percentile interval of the mean of values [q], by resampling queries."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
