"""Building an index of codes: trained on a bounded sample, filled in chunks from the mapped vectors.

In memory are the sample (`kinds.TRAIN_BYTES` at most) and the codes themselves, never the vectors.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.indexes.kinds import (
    HNSW,
    HNSW_LINKS,
    IVF_RABITQ,
    IVF_SQ8,
    MIN_CENTROID_GRAPH,
    SQ8,
    TRAIN_BYTES,
    TRAIN_ROWS_PER_LIST,
    count_lists,
)

_ADD_ROWS = 16_384
_SEED = 1234
_ITERATIONS = 10
_CONSTRUCTION_EFFORT = 100
_CENTROID_LINKS = 32
_CENTROID_CONSTRUCTION_EFFORT = 200
_RANGE_ROWS = 65_536
"""The sample that gives SQ8 its ranges; what lies outside is clipped, which the true inner products mend."""


def write_index(kind: str, vectors: ReadOnlyIndex, path: Path) -> dict[str, Any]:
    """Build an index over the rows of mapped vectors and write it.

    Args:
        kind: any but exact.
        vectors: at least one.
        path: of the file; half-written where the disk is full.

    Returns:
        The kind's parameters, for the manifest.

    Raises:
        GalleryBuildError: FAISS cannot write the file.
    """
    lists = count_lists(vectors.size, vectors.width)
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == SQ8:
        index = faiss.IndexScalarQuantizer(vectors.width, faiss.ScalarQuantizer.QT_8bit, metric)
        parameters: dict[str, Any] = {}
    elif kind == HNSW:
        index = faiss.IndexHNSWSQ(vectors.width, faiss.ScalarQuantizer.QT_8bit, HNSW_LINKS, metric)
        index.hnsw.efConstruction = _CONSTRUCTION_EFFORT
        parameters = {"links": HNSW_LINKS, "construction_effort": _CONSTRUCTION_EFFORT}
    elif kind in (IVF_SQ8, IVF_RABITQ):
        sample = _sample(vectors, min(TRAIN_ROWS_PER_LIST * lists, TRAIN_BYTES // (4 * vectors.width)))
        centroids = _find_centroids(sample, lists)
        if kind == IVF_SQ8:
            index = faiss.IndexIVFScalarQuantizer(
                centroids, vectors.width, lists, faiss.ScalarQuantizer.QT_8bit, metric, True
            )
        else:
            index = faiss.IndexIVFRaBitQFastScan(centroids, vectors.width, lists, metric)
        index.train(sample)  # the codes only: the centroids are there
        parameters = {"lists": lists, "trained_on": len(sample)}
    else:
        raise ValueError(f"no index of codes is of the kind {kind!r}")
    if kind in (SQ8, HNSW):
        index.train(_sample(vectors, _RANGE_ROWS))
    for chunk in vectors.read_chunks(_ADD_ROWS):
        index.add(chunk)
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as exc:
        raise GalleryBuildError(f"cannot write {path}: {exc}; free space or choose another --gallery") from exc
    return parameters


def _sample(vectors: ReadOnlyIndex, count: int) -> NDArray[np.float32]:
    if count >= vectors.size:
        return vectors.read_rows(np.arange(vectors.size))
    generator = np.random.default_rng(_SEED)
    return vectors.read_rows(np.sort(generator.choice(vectors.size, size=count, replace=False)))


def _find_centroids(sample: NDArray[np.float32], lists: int) -> faiss.Index:
    """Cluster on the sphere; many centroids get a graph over them."""
    width = sample.shape[1]
    clustering = faiss.Clustering(width, lists)
    clustering.seed = _SEED
    clustering.niter = _ITERATIONS
    clustering.spherical = True
    clustering.min_points_per_centroid = 1  # fewer are warned of
    clustering.max_points_per_centroid = 2 * TRAIN_ROWS_PER_LIST
    flat = faiss.IndexFlatIP(width)
    clustering.train(sample, flat)
    if lists < MIN_CENTROID_GRAPH:
        return flat
    graph = faiss.IndexHNSWFlat(width, _CENTROID_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _CENTROID_CONSTRUCTION_EFFORT
    graph.hnsw.efSearch = 64  # also what a vector's list is found with
    graph.add(faiss.vector_to_array(clustering.centroids).reshape(lists, width))
    return graph
