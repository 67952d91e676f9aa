"""Rows of numbers: L2 normalisation, and which rows can be normalised at all."""

import numpy as np
from numpy.typing import NDArray

_MIN_NORM = 1e-12


def usable_rows(features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say which rows are finite and not zero, so that they have a direction.

    Args:
        features: [b, E].

    Returns:
        [b], bool.
    """
    norms = np.linalg.norm(features.astype(np.float64), axis=1)  # float64: squares of large float32 values overflow
    usable: NDArray[np.bool_] = np.isfinite(norms) & (norms > _MIN_NORM)
    return usable


def l2_normalize(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every row to length 1.

    Args:
        features: [b, E]; a row that `usable_rows` refuses comes back as zeros.

    Returns:
        [b, E], float32.
    """
    usable = usable_rows(features)
    kept = np.where(usable[:, None], features, 0.0).astype(np.float64)
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    normalized: NDArray[np.float32] = (kept / np.maximum(norms, _MIN_NORM)).astype(np.float32)
    return normalized
