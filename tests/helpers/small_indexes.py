"""Vectors in clusters, as embeddings lie, and an index of any kind over them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asymcir_server.gallery.indexes import KINDS, IndexConfig, build_index
from asymcir_server.gallery.indexes.exact import ReadOnlyIndex
from asymcir_server.gallery.indexes.kinds import Effort
from asymcir_server.gallery.indexes.mapped import MappedIndex
from asymcir_server.gallery.indexes.recall import SearchIndex
from numpy.typing import NDArray

WIDTH = 32
CODED = tuple(kind for kind in KINDS if kind != "exact")


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """An index, its vectors and what the manifest says of it."""

    index: SearchIndex
    vectors: NDArray[np.float32]
    properties: dict


def make_vectors(count: int, seed: int, width: int = WIDTH) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).standard_normal((50, width))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(0, 50, count)] + 0.6 * generator.standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def build(folder: Path, kind: str, vectors: NDArray[np.float32], **options: object) -> Built:
    folder.mkdir(exist_ok=True)
    path = folder / "vectors.npy"
    np.save(path, vectors)
    properties = build_index(path, folder / "index.faiss", IndexConfig(kind=kind, **options))  # type: ignore[arg-type]
    exact = ReadOnlyIndex(path)
    if properties["index_kind"] == "exact":
        return Built(index=exact, vectors=vectors, properties=properties)
    effort = Effort(**properties["index"]["effort"])
    index = MappedIndex(folder / "index.faiss", properties["index_kind"], exact, effort)
    return Built(index=index, vectors=vectors, properties=properties)
