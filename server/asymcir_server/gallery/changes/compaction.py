"""A snapshot and the changes made to it, written as the next snapshot. Servers answer from the old one meanwhile."""

import contextlib
import json
import shutil
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import write_manifest
from asymcir_common.manifest import GALLERY
from numpy.typing import NDArray

from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.changes.delta import ChangesReader, Delta
from asymcir_server.gallery.changes.editor import Editor, edit_gallery
from asymcir_server.gallery.changes.table import changes_path
from asymcir_server.gallery.indexes import INDEX_NAME, IndexConfig, build_index, choose_kind
from asymcir_server.gallery.indexes.kinds import AUTO, DEFAULT_RECALL, EXACT, KINDS
from asymcir_server.gallery.metadata import METADATA_NAME, MetadataReader, MetadataWriter
from asymcir_server.gallery.snapshots import new_snapshot, publish
from asymcir_server.gallery.sources.duplicates import DUPLICATES_NAME, write_duplicates
from asymcir_server.gallery.sources.near_duplicates import HASHES_NAME
from asymcir_server.gallery.sources.reporting import QUARANTINE_NAME
from asymcir_server.gallery.sources.thumbnails import THUMBNAILS_NAME, ThumbnailReader, ThumbnailWriter
from asymcir_server.gallery.store import Gallery
from asymcir_server.gallery.vectors_file import VECTORS_NAME, VectorWriter

MIXED_ENCODERS = ""
"""The manifest's `encoder` where vectors of several exports of one model lie together: none is taken over later."""

_COPY_ROWS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactReport:
    """What was merged.

    Attributes:
        version: the snapshot that answers now; the one before where there was nothing to merge.
        size: N, pictures in it.
        added, removed, updated: pictures that the changes concerned.
        index_kind, index_recall_at_10: its index.
        elapsed_s: wall clock.
    """

    version: str
    size: int
    added: int
    removed: int
    updated: int
    index_kind: str
    index_recall_at_10: float
    elapsed_s: float


def compact_gallery(
    folder: str | Path, *, index: str | None = None, wait_s: float = 0.0, opened: Gallery | None = None
) -> CompactReport:
    """Write the current snapshot with its changes as the next one, and make it the one that answers.

    The old snapshot keeps its changes: rolling back to it answers the same.

    Args:
        folder: the gallery.
        index: kind of the index, or "auto"; None: as the snapshot's, chosen anew where `auto` would have chosen that.
        wait_s: how long to wait for another writer.
        opened: see `edit_gallery`.

    Raises:
        BundleError: no gallery, or a damaged one.
        GalleryBuildError: nothing would be left, another writer, or a gallery that cannot be written.
    """
    folder = Path(folder)
    started_s = time.monotonic()
    with edit_gallery(folder, "gallery compact", opened=opened, wait_s=wait_s) as editor:
        gallery = editor.gallery
        added, removed, updated = gallery.describe_changes()
        version, kind, recall = gallery.version, gallery.index_kind, gallery.index_recall_at_10
        if added or removed or updated:
            if not gallery.size:
                raise GalleryBuildError(f"every picture of {folder} is removed: a snapshot needs at least one")
            version, kind, recall = _write(editor, index)
        return CompactReport(
            version=version,
            size=gallery.size,
            added=added,
            removed=removed,
            updated=updated,
            index_kind=kind,
            index_recall_at_10=recall,
            elapsed_s=time.monotonic() - started_s,
        )


def _write(editor: Editor, index: str | None) -> tuple[str, str, float]:
    out, snapshot, delta = editor.gallery.folder, editor.folder, editor.gallery.delta
    properties = dict(editor.properties)
    with new_snapshot(out) as (folder, version), contextlib.ExitStack() as stack:
        reader = ChangesReader(
            changes_path(out, snapshot.name), editor.gallery.identity, delta.size, editor.gallery.embedding_width
        )
        stack.callback(reader.close)
        stored = {row: rest for row, *rest in _without_thumbnails(reader)}
        kept = np.ones(delta.size, dtype=bool)
        if delta.removed is not None:
            kept[delta.removed.rows] = False
        _copy_vectors(snapshot / VECTORS_NAME, folder / VECTORS_NAME, kept, delta)
        with contextlib.closing(MetadataWriter(folder / METADATA_NAME)) as metadata:
            digests = _copy_metadata(
                snapshot / METADATA_NAME, metadata, kept, delta, collect=THUMBNAILS_NAME in editor.files
            )
            hashes: NDArray[np.uint64] | None = None
            if HASHES_NAME in editor.files:
                hashes = _join_hashes(snapshot / HASHES_NAME, kept, delta, stored)
                np.save(folder / HASHES_NAME, hashes)
            write_duplicates(folder / DUPLICATES_NAME, metadata, hashes)
            items = metadata.finish()
        if THUMBNAILS_NAME in editor.files:
            _copy_thumbnails(snapshot / THUMBNAILS_NAME, folder / THUMBNAILS_NAME, digests, reader, delta)
        if (snapshot / QUARANTINE_NAME).exists():
            shutil.copyfile(snapshot / QUARANTINE_NAME, folder / QUARANTINE_NAME)
        described = build_index(folder / VECTORS_NAME, folder / INDEX_NAME, _index_config(properties, index))
        encoders = {properties.get("encoder", MIXED_ENCODERS), *(encoder for encoder, _hash in stored.values())}
        properties |= {
            "version": version,
            "size": editor.gallery.size,
            "items": items,
            "encoder": encoders.pop() if len(encoders) == 1 else MIXED_ENCODERS,
            "compacted": {"version": snapshot.name, "change": delta.change},
            **described,
        }
        write_manifest(folder, format=GALLERY, properties=properties, sampled=True)
        publish(out, folder, version)
    return version, str(described["index_kind"]), float(described["index_recall_at_10"])


def _without_thumbnails(reader: ChangesReader) -> list[tuple[int, str, int | None]]:
    return [(row, encoder, hashed) for row, encoder, _thumbnail, hashed in reader.stored()]


def _index_config(properties: Mapping[str, Any], index: str | None) -> IndexConfig:
    held = properties["index_kind"]
    kind = held if held in KINDS else EXACT  # snapshots of before call exact otherwise
    if index is None and kind == choose_kind(int(properties["size"]), int(properties["embedding_width"])):
        index = AUTO
    recall = properties.get("index", {}).get("recall_asked", DEFAULT_RECALL)
    return IndexConfig(kind=index or kind, recall=float(recall))


def _copy_vectors(source: Path, target: Path, kept: NDArray[np.bool_], delta: Delta) -> None:
    vectors: NDArray[np.float32] = np.load(source, mmap_mode="r", allow_pickle=False)
    writer = VectorWriter(target, vectors.shape[1])
    try:
        for start in range(0, len(vectors), _COPY_ROWS):
            writer.append(vectors[start : start + _COPY_ROWS][kept[start : start + _COPY_ROWS]])
        writer.append(delta.vectors[delta.alive])
        writer.close()
    except BaseException:
        writer.abort()
        raise


def _copy_metadata(
    source: Path, writer: MetadataWriter, kept: NDArray[np.bool_], delta: Delta, *, collect: bool
) -> set[bytes]:
    """Copy ids, items and metadata; returns the digests of the pictures that are kept, if they are wanted."""
    digests, row = set[bytes](), 0
    reader = MetadataReader(source)
    try:
        for before, identity, item, digest, text in reader.read_all():
            if not kept[before]:
                continue
            said = delta.updated.get(before)
            if said is not None:
                writer.add(row, identity, said.metadata, item=said.item, digest=digest)
            else:
                writer.add(row, identity, json.loads(text), item=item, digest=digest)
            if collect and digest is not None:
                digests.add(digest)
            row += 1
    finally:
        reader.close()
    for added in delta.rows[delta.alive].tolist():
        record = delta.added[added]
        writer.add(row, record.id, record.metadata, item=record.item, digest=record.digest)
        row += 1
    return digests


def _copy_thumbnails(source: Path, target: Path, digests: set[bytes], reader: ChangesReader, delta: Delta) -> None:
    before, writer = ThumbnailReader(source), ThumbnailWriter(target)
    try:
        for number, digest in enumerate(sorted(digests)):
            if (image := before.read(digest)) is not None:
                writer.add(digest, image)
            if number % _COPY_ROWS == 0:
                writer.commit()
        for row, _encoder, image, _hash in reader.stored():
            held = delta.added[row].digest
            if image is not None and held is not None:
                writer.add(held, image)
        writer.close()
    except BaseException:
        writer.abort()
        raise
    finally:
        before.close()


def _join_hashes(
    source: Path, kept: NDArray[np.bool_], delta: Delta, stored: Mapping[int, list[Any]]
) -> NDArray[np.uint64]:
    before: NDArray[np.uint64] = np.load(source, mmap_mode="r", allow_pickle=False)
    added = array("Q", (int(stored[row][1] or 0) % 2**64 for row in delta.rows[delta.alive].tolist()))
    return np.concatenate([before[kept], np.frombuffer(added, np.uint64)])
