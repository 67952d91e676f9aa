"""A digest that tells one set of pictures from another."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SAMPLED_PICTURES = 64


def digest_pictures(arrays: Sequence[NDArray[np.uint8]]) -> str:
    """Hash the sizes of picture arrays [n, S, S, 3] and an even sample of each: enough to tell two sets apart."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(str(array.shape).encode())
        for place in np.linspace(0, len(array) - 1, min(len(array), _SAMPLED_PICTURES)).astype(int):
            sha256.update(np.ascontiguousarray(array[place]).tobytes())
    return sha256.hexdigest()
