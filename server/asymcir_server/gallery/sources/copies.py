"""Copies of a picture: a search that answers each picture once, however often it is in the gallery."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asymcir_server.gallery.sources.near_duplicates import MAX_DIFFERENT_BITS

LEAST_COPY_COSINE = 0.95
"""Pictures whose hashes are near are copies from this cosine of their vectors on: a red and a blue heart are none."""

_MAX_DEPTH_FACTOR = 64

FindRows = Callable[[int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Searches one query: depth to scores [k] and rows [k], best first; fewer than depth only where there are no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """What tells whether two pictures are copies.

    Attributes:
        digest: SHA-256 of the file; None where it is not known.
        picture_hash: of the look, where the build looked for near duplicates.
        vector: target representation [E], beside the hash.
    """

    digest: bytes | None = None
    picture_hash: int | None = None
    vector: NDArray[np.float32] | None = None


class Distinct:
    """Tells copies of the pictures that it was shown before."""

    def __init__(self) -> None:
        self._digests = set[bytes]()
        self._hashed: list[Fingerprint] = []

    def take(self, picture: Fingerprint) -> bool:
        """Return whether a picture is none of those before; if so, it is kept for those that follow."""
        if picture.digest in self._digests or any(_look_alike(picture, other) for other in self._hashed):
            return False
        if picture.digest is not None:
            self._digests.add(picture.digest)
        if picture.picture_hash is not None:
            self._hashed.append(picture)
        return True


def search_distinct(
    find: FindRows, describe: Callable[[Sequence[int]], list[Fingerprint]], top_k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search until `top_k` pictures that are no copies are found, each by its best copy, or the gallery ends.

    It looks 64 times as deep as top_k, at most: where all of that are copies of fewer pictures, fewer come back.

    Args:
        find: of one query.
        describe: rows to fingerprints.
        top_k: pictures.

    Returns:
        scores [k] and rows [k], best first, k at most top_k.
    """
    depth = top_k
    while True:
        scores, rows = find(depth)
        held, distinct, kept = rows >= 0, Distinct(), list[int]()
        scores, rows = scores[held], rows[held]
        for place, fingerprint in enumerate(describe(rows.tolist())):
            if distinct.take(fingerprint):
                kept.append(place)
            if len(kept) == top_k:
                break
        if len(kept) == top_k or len(rows) < depth or depth >= _MAX_DEPTH_FACTOR * top_k:
            return scores[kept], rows[kept]
        depth *= 2


def _look_alike(one: Fingerprint, other: Fingerprint) -> bool:
    if one.picture_hash is None or other.picture_hash is None or one.vector is None or other.vector is None:
        return False
    if (one.picture_hash ^ other.picture_hash).bit_count() > MAX_DIFFERENT_BITS:
        return False
    return float(one.vector @ other.vector) >= LEAST_COPY_COSINE
