"""Galleries of random vectors in a folder, and what they must answer after changes, in plain Python."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common.files import write_atomically
from asymcir_common.manifest import GALLERY, write_manifest
from asymcir_server.gallery.changes.table import NewPicture
from asymcir_server.gallery.filters import read_item
from asymcir_server.gallery.indexes import INDEX_NAME, IndexConfig, build_index
from asymcir_server.gallery.metadata import METADATA_NAME, MetadataWriter
from asymcir_server.gallery.vectors_file import VECTORS_NAME, VectorWriter
from numpy.typing import NDArray

WIDTH = 16
ENCODER = "tests"


def unit_rows(count: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def new_picture(identity: str, vector: NDArray[np.float32], metadata: dict[str, Any]) -> NewPicture:
    return NewPicture(
        id=identity,
        item=read_item(metadata, "item"),
        digest=hashlib.sha256(vector.tobytes()).digest(),
        metadata=metadata,
        vector=vector,
        encoder=ENCODER,
    )


@dataclass
class Expected:
    """What a gallery holds: id -> vector and metadata, in its order."""

    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def search(self, query: NDArray[np.float32], top_k: int, allowed: set[str], by_item: bool = False) -> list[str]:
        names = [name for name in self.vectors if name in allowed]
        scores = np.array([self.vectors[name] @ query for name in names])
        found, seen = list[str](), set[str]()
        for place in np.argsort(-scores, kind="stable").tolist():
            item = read_item(self.metadata[names[place]], "item")
            if by_item and item in seen:
                continue
            if by_item and item is not None:
                seen.add(item)
            found.append(names[place])
        return found[:top_k]


def write_gallery(
    folder: Path,
    metadata: list[dict[str, Any]],
    *,
    kind: str = "exact",
    seed: int = 1,
    target_space: str = "space",
    first: int = 0,
) -> Expected:
    """Write snapshot 000001 of pictures p0, p1, ... (from another first number) and make it the current one."""
    vectors = unit_rows(len(metadata), seed)
    snapshot = folder / "snapshots/000001"
    snapshot.mkdir(parents=True)
    writer = VectorWriter(snapshot / VECTORS_NAME, WIDTH)
    writer.append(vectors)
    writer.close()
    table = MetadataWriter(snapshot / METADATA_NAME)
    for row, record in enumerate(metadata):
        digest = hashlib.sha256(vectors[row].tobytes()).digest()
        table.add(row, f"p{first + row}", record, item=read_item(record, "item"), digest=digest)
    properties = {
        "version": "000001", "target": "union", "target_space": target_space, "size": len(metadata),
        "items": table.finish(), "embedding_width": WIDTH, "encoder": ENCODER,
        **build_index(snapshot / VECTORS_NAME, snapshot / INDEX_NAME, IndexConfig(kind=kind)),
    }  # fmt: skip
    table.close()
    write_manifest(snapshot, format=GALLERY, properties=properties)
    write_atomically(folder / "CURRENT", "000001\n")
    return Expected(
        vectors={f"p{first + row}": vector for row, vector in enumerate(vectors)},
        metadata={f"p{first + row}": dict(record) for row, record in enumerate(metadata)},
    )
