"""How UNION's gate is distributed over the pictures of a build, counted in memory that does not grow with them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = -1.0, 3.0
"""Of the histogram; gates beyond are counted in its first or last bin."""

BINS = 400


class GateCounter:
    """Counts gates as a histogram, with their mean and standard deviation."""

    def __init__(self) -> None:
        self._bins = np.zeros(BINS, np.int64)
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, gates: NDArray[np.float32]) -> None:
        """Count gates, of any shape; what is not finite is left out."""
        exact = gates[np.isfinite(gates)].astype(np.float64)
        places = ((exact - LEAST) / (MOST - LEAST) * BINS).astype(np.int64)
        self._bins += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)
        self._count += exact.size
        self._sum += float(exact.sum())
        self._squares += float((exact**2).sum())

    def to_record(self) -> dict[str, Any] | None:
        """Return it for the manifest; None where nothing was counted.

        Returns:
            `pictures`, `mean`, `standard_deviation`, and a histogram without empty ends: `bins` from `least` to `most`.
        """
        if not self._count:
            return None
        mean = self._sum / self._count
        filled = np.flatnonzero(self._bins)
        first, end, width = int(filled[0]), int(filled[-1]) + 1, (MOST - LEAST) / BINS
        return {
            "pictures": self._count,
            "mean": round(mean, 5),
            "standard_deviation": round(math.sqrt(max(0.0, self._squares / self._count - mean**2)), 5),
            "least": round(LEAST + width * first, 5),
            "most": round(LEAST + width * end, 5),
            "bins": self._bins[first:end].tolist(),
        }
