"""What the page of a gallery shows, gathered from its snapshot in memory that does not grow with it.

Notation: n pictures of the sample, E joint-embedding width.
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymcir_server.gallery.history import SnapshotRecord, list_snapshots
from asymcir_server.gallery.metadata import METADATA_NAME, MetadataReader
from asymcir_server.gallery.sources.duplicates import DUPLICATES_NAME
from asymcir_server.gallery.sources.reporting import QUARANTINE_NAME
from asymcir_server.gallery.store import Gallery
from asymcir_server.gallery.vectors_file import VECTORS_NAME

MAP_POINTS = 1500
"""Pictures of the map, spread evenly over the snapshot."""

MAP_THUMBNAILS = 150
"""Of these, those shown by their thumbnail."""

LISTED = 50
"""Groups of duplicates, and pictures put aside, that are listed one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapPoint:
    """A picture of the map.

    Attributes:
        identity: its id.
        x, y: from 0 to 1.
        thumbnail: a WebP file, or None.
    """

    identity: str
    x: float
    y: float
    thumbnail: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Lines of a file of the snapshot.

    Attributes:
        total: how many there are.
        first: the first LISTED of them.
        kinds: kind -> how many.
    """

    total: int
    first: Sequence[Mapping[str, Any]]
    kinds: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a gallery holds.

    Attributes:
        folder: its name.
        version: the current snapshot, with the number of the last change made to it.
        properties: of the snapshot's manifest.
        size: pictures, changes included.
        changes: pictures added, removed, and given other metadata since the snapshot was built.
        columns: metadata key -> type.
        files: name -> size in bytes, of the snapshot.
        snapshots: all that the gallery holds.
        explained: share of the vectors' variance that the map shows.
        points: the map.
        duplicates: groups of pictures that are there more than once.
        quarantined: pictures put aside when the snapshot was built.
    """

    folder: str
    version: str
    properties: Mapping[str, Any]
    size: int
    changes: tuple[int, int, int]
    columns: Mapping[str, str]
    files: Mapping[str, int]
    snapshots: Sequence[SnapshotRecord]
    explained: float
    points: Sequence[MapPoint]
    duplicates: Listing
    quarantined: Listing


def summarise(gallery: Gallery) -> Summary:
    """Gather what an open gallery holds."""
    points, explained = _draw_map(gallery)
    return Summary(
        folder=gallery.folder.resolve().name,
        version=gallery.full_version,
        properties=gallery.manifest.properties,
        size=gallery.size,
        changes=gallery.describe_changes(),
        columns={column.key: str(column.type) for column in gallery.columns.by_key.values()},
        files={name: entry.size_bytes for name, entry in sorted(gallery.manifest.files.items())},
        snapshots=list_snapshots(gallery.folder),
        explained=explained,
        points=points,
        duplicates=_read_lines(gallery.snapshot / DUPLICATES_NAME, "kind"),
        quarantined=_read_lines(gallery.snapshot / QUARANTINE_NAME, "reason"),
    )


def project(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Project vectors to the plane of their two largest principal components.

    Args:
        vectors: [n, E], n of at least 1.

    Returns:
        Places [n, 2], each coordinate from 0 to 1, and the share of the variance that the plane holds.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    plane = centred @ directions[:, [-1, -2] if vectors.shape[1] > 1 else [-1, -1]]
    low, high = plane.min(axis=0), plane.max(axis=0)
    places: NDArray[np.float64] = (plane - low) / np.where(high > low, high - low, 1.0)
    total = float(values.sum())
    return places, float(values[-2:].sum()) / total if total > 0.0 else 0.0


def _draw_map(gallery: Gallery) -> tuple[list[MapPoint], float]:
    vectors = np.load(gallery.snapshot / VECTORS_NAME, mmap_mode="r")
    rows = np.linspace(0, len(vectors) - 1, min(MAP_POINTS, len(vectors))).astype(np.int64)
    with closing(MetadataReader(gallery.snapshot / METADATA_NAME)) as reader:
        names = reader.ids(rows.tolist())
    places, explained = project(np.asarray(vectors[rows]))
    shown = set(np.linspace(0, len(rows) - 1, min(MAP_THUMBNAILS, len(rows))).astype(int).tolist())
    points = []
    for number, row in enumerate(rows.tolist()):
        identity = names[row]
        thumbnail = gallery.thumbnail(identity) if number in shown and gallery.thumbnail_side else None
        points.append(
            MapPoint(identity=identity, x=float(places[number, 0]), y=float(places[number, 1]), thumbnail=thumbnail)
        )
    return points, explained


def _read_lines(path: Path, key: str) -> Listing:
    """Read a file of JSON lines that the build wrote; an absent one has no lines."""
    if not path.is_file():
        return Listing(total=0, first=[], kinds={})
    kinds, first, total = Counter[str](), list[dict[str, Any]](), 0
    with path.open(encoding="utf-8") as stream:
        for line in itertools.filterfalse(str.isspace, stream):
            record = json.loads(line)
            total += 1
            kinds[str(record.get(key, ""))] += 1
            if len(first) < LISTED:
                first.append(record)
    return Listing(total=total, first=first, kinds=dict(kinds.most_common(LISTED)))
