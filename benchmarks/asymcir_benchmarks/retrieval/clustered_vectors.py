"""Synthetic vectors that lie as embeddings do: in clusters of unequal size, with few directions that matter.

Vectors with independent components have no neighbours worth finding: all lie equally far apart. Here component i of a
vector has a standard deviation that falls with the square root of i, cluster centres and the spread around them alike;
a rotation hides the axes; the vectors are L2-normalised. There are `clusters_for(N)` clusters, and a vector's cluster
is drawn so that the first are the largest. Queries are drawn from the same clusters with another seed: they are not in
the gallery.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.7
"""Of a cluster, against the spread of the centres."""

_CHUNK_ROWS = 65_536


def clusters_for(count: int) -> int:
    """Return how many clusters a gallery of `count` vectors has: one for a hundred vectors."""
    return max(1, count // 100)


class ClusteredVectors:
    """One distribution, from which a gallery and its queries are drawn."""

    def __init__(self, width: int, clusters: int, seed: int = 0) -> None:
        """Draw the centres and the rotation."""
        self.width = width
        self._seed = seed
        self._clusters = clusters
        generator = np.random.default_rng(seed)
        self._scale = ((1.0 + np.arange(width)) ** -0.5).astype(np.float32)  # [E]
        self._centres = generator.standard_normal((clusters, width), dtype=np.float32) * self._scale
        self._rotation = np.linalg.qr(generator.standard_normal((width, width)))[0].astype(np.float32)

    def draw(self, count: int, seed: int) -> Iterator[NDArray[np.float32]]:
        """Yield chunks [n, E], `count` rows in all; the same for the same seed."""
        generator = np.random.default_rng((self._seed, seed))
        for start in range(0, count, _CHUNK_ROWS):
            rows = min(_CHUNK_ROWS, count - start)
            centre = (self._clusters * generator.random(rows) ** 2).astype(np.int64)
            noise = generator.standard_normal((rows, self.width), dtype=np.float32) * self._scale
            vectors = (self._centres[centre] + np.float32(SPREAD) * noise) @ self._rotation
            yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
