"""Building a gallery: pictures in, an immutable snapshot out.

Worker threads read and decode (`sources/decode.py`); this thread encodes whole batches and writes, in memory that does
not grow with the gallery. What the current snapshot, or an interrupted build, made of a picture's file is taken from
there (`sources/encoded.py`). A picture that cannot be read goes to `quarantine.jsonl` with the reason, and the build
goes on.
"""

import contextlib
import json
import logging
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from asymcir_common import BundleError, write_manifest
from asymcir_common.arguments import MAX_BATCH_SIZE, MAX_THREADS
from asymcir_common.manifest import GALLERY, MANIFEST_NAME
from asymcir_common.places import Rejected
from numpy.typing import NDArray

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.targets import TargetEncoder
from asymcir_server.encode.vectors import usable_rows
from asymcir_server.encode.visual import VisualEncoder
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.changes.delta import count_changes
from asymcir_server.gallery.changes.table import changes_path
from asymcir_server.gallery.filters import DEFAULT_ITEM_COLUMN, explain_item, read_item
from asymcir_server.gallery.indexes import INDEX_NAME, IndexConfig, build_index
from asymcir_server.gallery.metadata import METADATA_NAME, MetadataWriter
from asymcir_server.gallery.overview.gates import GateCounter
from asymcir_server.gallery.snapshots import CURRENT_NAME, current_snapshot, lock_gallery, new_snapshot, publish
from asymcir_server.gallery.sources.completion import complete
from asymcir_server.gallery.sources.decode import decode_batches
from asymcir_server.gallery.sources.duplicates import DUPLICATES_NAME, Duplicates, write_duplicates
from asymcir_server.gallery.sources.encoded import EncodedPictures, Wanted, encoder_digest, open_encoded
from asymcir_server.gallery.sources.entries import Entry, Source, open_source
from asymcir_server.gallery.sources.near_duplicates import HASHES_NAME
from asymcir_server.gallery.sources.reporting import (
    QUARANTINE_NAME,
    BuildPlan,
    BuildReport,
    ReasonCounts,
    write_rejected,
)
from asymcir_server.gallery.sources.thumbnails import MAX_THUMBNAIL_SIDE, THUMBNAILS_NAME, ThumbnailWriter
from asymcir_server.gallery.vectors_file import VECTORS_NAME, VectorWriter

_log = logging.getLogger(__name__)

_MOST_SHRINKING = 2
_ID_TAKEN = "its id is taken by an earlier picture: ids must be unique"

Progress = Callable[[int, int, int], None]
"""Called with entries done, entries in all, and entries quarantined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """How to build.

    Attributes:
        target: target type, "union", "original" or "sum"; None: "union" where the bundle has a UNION head, else
            "original".
        batch_size: pictures per run of the visual encoder, at most MAX_BATCH_SIZE.
        workers: threads that read and decode, at most MAX_THREADS; 0: one per core, at most 8.
        replace_space: allow a snapshot of another target space than the gallery's current one.
        index: which index, and the recall that it must reach.
        thumbnail_side: keep thumbnails whose longer side has this many pixels, at most MAX_THUMBNAIL_SIDE; 0: none.
        near_duplicates: look for pictures that look alike.
        item_column: the metadata key that names the item which a picture shows; empty for none.
        allow_shrink: allow a snapshot of less than half as many pictures as the gallery has now.
        include, exclude: patterns of paths that are taken, all where there are none, and left out; see
            `sources.entries.match_path`.
    """

    target: str | None = None
    batch_size: int = 32
    workers: int = 0
    replace_space: bool = False
    index: IndexConfig = field(default_factory=IndexConfig)
    thumbnail_side: int = 0
    near_duplicates: bool = False
    item_column: str = DEFAULT_ITEM_COLUMN
    allow_shrink: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE or not 0 <= self.workers <= MAX_THREADS:
            raise GalleryBuildError(
                f"expected a batch size from 1 to {MAX_BATCH_SIZE} and 0 to {MAX_THREADS} workers, "
                f"got {self.batch_size} and {self.workers}"
            )
        if not 0 <= self.thumbnail_side <= MAX_THUMBNAIL_SIDE:
            raise GalleryBuildError(
                f"expected thumbnails of 1 to {MAX_THUMBNAIL_SIDE} pixels, or 0 for none, got {self.thumbnail_side}"
            )


def build_gallery(
    images: str | Path | Sequence[str | Path],
    bundle: ServerBundle,
    out: str | Path,
    *,
    config: BuildConfig | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build the next snapshot of a gallery and make it the one that answers.

    Args:
        images: a folder (searched recursively), a zip, an uncompressed tar, a JSON-lines list, or several of these; as
            a text also with globs and braces ("shards/{000..012}.tar").
        bundle: makes the vectors.
        out: the gallery; created where there is none.
        config: defaults to `BuildConfig()`.
        progress: called after every batch.

    Raises:
        GalleryBuildError: no usable picture, a folder that is something else, another space, another build running.
        BundleError: the bundle does not fit its manifest, or cannot make the target type that is asked for.
    """
    out = Path(out)
    started_s = time.monotonic()
    config = config or BuildConfig()
    target = config.target or bundle.default_target
    target_space = bundle.target_space(target)
    source = open_source(images, include=config.include, exclude=config.exclude)
    with lock_gallery(out), _explain_write_errors(out):
        if not config.replace_space:
            _refuse_other_space(out, target_space)
        before = 0 if config.allow_shrink else _count_pictures(out)
        _refuse_shrinking(out, before, len(source), "all that is there")  # before hours of encoding
        wanted = Wanted(
            encoder=encoder_digest(bundle, target),
            width=bundle.text.embedding_width,
            thumbnail_side=config.thumbnail_side,
            picture_hash=config.near_duplicates,
        )
        with (
            contextlib.closing(open_encoded(out, wanted)) as encoded,
            new_snapshot(out) as (folder, version),
        ):
            items = _write_items(source, bundle, folder, target, config, wanted, encoded, progress)
            size = items.size
            if size == 0:
                raise GalleryBuildError(_explain_nothing(images, source, folder, items.quarantined))
            _refuse_shrinking(out, before, size, f"{items.quarantined} are put aside")
            index = build_index(folder / VECTORS_NAME, folder / INDEX_NAME, config.index)
            write_manifest(
                folder,
                format=GALLERY,
                properties={
                    "version": version,
                    "target": target,
                    "target_space": target_space,
                    "size": size,
                    "items": items.named,
                    "embedding_width": bundle.text.embedding_width,
                    **index,
                    "encoder": wanted.encoder,
                    "thumbnail_side": wanted.thumbnail_side,
                    "item_column": config.item_column,
                    "gates": items.gates.to_record(),
                },
                sampled=True,
            )
            left = _count_left(out)
            snapshot = publish(out, folder, version)
            encoded.clear()
    return BuildReport(
        snapshot=snapshot,
        version=version,
        target=target,
        size=size,
        encoded=items.encoded,
        quarantined=items.quarantined,
        quarantined_by_reason=items.reasons.most_common(),
        quarantined_examples=items.reasons.examples,
        passed_over=source.passed_over,
        passed_over_examples=source.passed_over_examples,
        left_out=source.left_out,
        duplicates=items.duplicates,
        index_kind=index["index_kind"],
        index_recall_at_10=index["index_recall_at_10"],
        elapsed_s=time.monotonic() - started_s,
        changes_before=left,
        noted=items.notes.most_common(),
        noted_examples=items.notes.examples,
    )


def plan_gallery(
    images: str | Path | Sequence[str | Path], out: str | Path, *, config: BuildConfig | None = None
) -> BuildPlan:
    """Find what a build would take, without reading a picture and without writing.

    Args:
        images, out: see `build_gallery`.
        config: of which only what is taken counts: include, exclude, allow_shrink.

    Raises:
        GalleryBuildError: nothing is there, or the gallery would shrink by more than half.
    """
    config = config or BuildConfig()
    source = open_source(images, include=config.include, exclude=config.exclude)
    reasons, ids, pictures, quarantined = ReasonCounts(), set[str](), 0, 0
    for item in source:
        if isinstance(item, Entry) and item.id in ids:
            item = Rejected(id=item.id, path=item.path, reason=_ID_TAKEN)
        if isinstance(item, Entry):
            ids.add(item.id)
            pictures += 1
        else:
            reasons.add(item)
            quarantined += 1
    if not config.allow_shrink:
        _refuse_shrinking(Path(out), _count_pictures(Path(out)), pictures, "all that is there")
    return BuildPlan(
        pictures=pictures,
        quarantined=quarantined,
        quarantined_by_reason=reasons.most_common(),
        quarantined_examples=reasons.examples,
        passed_over=source.passed_over,
        passed_over_examples=source.passed_over_examples,
        left_out=source.left_out,
    )


@contextlib.contextmanager
def _explain_write_errors(out: Path) -> Iterator[None]:
    before = (out / CURRENT_NAME).exists()
    try:
        yield
    except (OSError, sqlite3.Error) as exc:
        what = "the snapshot before stays" if before else "there is no snapshot yet"
        raise GalleryBuildError(
            f"cannot write the gallery {out}: {exc}; {what}: free space, or choose another --gallery"
        ) from exc


def _refuse_other_space(out: Path, target_space: str) -> None:
    try:
        record = json.loads((current_snapshot(out) / MANIFEST_NAME).read_text(encoding="utf-8"))
        held = record["properties"]["target_space"]
    except Exception as exc:  # no gallery yet, or one so damaged that building it again is the way out
        _log.debug("no current snapshot to compare with in %s: %s", out, exc)
        return
    if held != target_space:
        raise GalleryBuildError(
            f"the gallery {out} is of the target space {held}, this bundle and target make {target_space}: "
            "choose another --gallery, or pass --replace-space if every server that opens it changes its bundle too"
        )


def _count_pictures(out: Path) -> int:
    """Count the pictures that a gallery holds now; 0 where there is none yet, or it cannot be read."""
    try:
        properties = json.loads((current_snapshot(out) / MANIFEST_NAME).read_text(encoding="utf-8"))["properties"]
        added, removed, _ = _count_left(out)
        return int(properties["size"]) + added - removed
    except Exception as exc:  # no gallery yet, or one so damaged that building it again is the way out
        _log.debug("no pictures to compare with in %s: %s", out, exc)
        return 0


def _refuse_shrinking(out: Path, before: int, now: int, found: str) -> None:
    """Refuse to replace a gallery by less than half of it: as a rule a folder that is not mounted, or half copied."""
    if 0 < now < before / _MOST_SHRINKING:
        raise GalleryBuildError(
            f"the gallery {out} holds {before} pictures and would hold {now} ({found}): check that all of the pictures "
            "are there, or pass --allow-shrink"
        )


def _count_left(out: Path) -> tuple[int, int, int]:
    """Count the changes that were made to the current snapshot; none where there is none, or they cannot be read."""
    try:
        return count_changes(changes_path(out, current_snapshot(out).name))
    except BundleError:
        return 0, 0, 0


@dataclass(kw_only=True, slots=True)
class _Items:
    """What was written of a snapshot; `named` counts the different items that its pictures show."""

    size: int = 0
    named: int = 0
    encoded: int = 0
    quarantined: int = 0
    reasons: ReasonCounts = field(default_factory=ReasonCounts)
    notes: ReasonCounts = field(default_factory=ReasonCounts)
    duplicates: Duplicates = field(default_factory=lambda: Duplicates(exact=0, near=None, examples=()))
    gates: GateCounter = field(default_factory=GateCounter)


def _write_items(
    source: Source,
    bundle: ServerBundle,
    folder: Path,
    target: str,
    config: BuildConfig,
    wanted: Wanted,
    encoded: EncodedPictures,
    progress: Progress | None,
) -> _Items:
    total, done, items = len(source), 0, _Items()
    visual = VisualEncoder(bundle)
    targets = TargetEncoder(bundle)

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        vectors, gates = targets.compute_gated(visual.encode_image(pixels), target)
        if gates is not None:
            items.gates.add(gates)
        return vectors

    with contextlib.ExitStack() as stack:
        vectors = VectorWriter(folder / VECTORS_NAME, bundle.text.embedding_width)
        stack.callback(vectors.abort)
        metadata = MetadataWriter(folder / METADATA_NAME)
        stack.callback(metadata.close)
        thumbnails: ThumbnailWriter | None = None
        if wanted.thumbnail_side:
            thumbnails = ThumbnailWriter(folder / THUMBNAILS_NAME)
            stack.callback(thumbnails.abort)
        hashes = array("Q")
        quarantine = stack.enter_context((folder / QUARANTINE_NAME).open("w", encoding="utf-8"))
        batches = stack.enter_context(
            contextlib.closing(
                decode_batches(
                    source,
                    bundle.preprocessing,
                    encoded,
                    wanted,
                    batch_size=config.batch_size,
                    workers=config.workers,
                )
            )
        )
        for pictures, rejected in batches:
            done += len(pictures) + len(rejected)
            completed, count = complete(pictures, encoded, encode)
            items.encoded += count
            for picture, made in zip(pictures, completed, strict=True):
                entry, reason = picture.entry, None
                for note in picture.notes:
                    items.notes.add(Rejected(id=entry.id, path=entry.path, reason=note))
                vector = np.zeros((1, wanted.width), np.float32) if made.vector is None else made.vector[None]
                if not usable_rows(vector)[0]:
                    reason = "the visual encoder gives it no direction (not finite, or zero)"
                elif (problem := explain_item(entry.metadata, config.item_column)) is not None:
                    reason = problem
                elif not metadata.add(
                    vectors.size,
                    entry.id,
                    entry.metadata,
                    item=read_item(entry.metadata, config.item_column),
                    digest=picture.digest,
                ):
                    reason = _ID_TAKEN
                if reason is not None:
                    rejected.append(Rejected(id=entry.id, path=entry.path, reason=reason))
                    continue
                vectors.append(vector)
                if thumbnails is not None and made.thumbnail is not None:
                    thumbnails.add(picture.digest, made.thumbnail)
                if made.picture_hash is not None:
                    hashes.append(made.picture_hash)
            if thumbnails is not None:
                thumbnails.commit()
            for item in rejected:
                write_rejected(quarantine, item)
                items.reasons.add(item)
            items.quarantined += len(rejected)
            if progress is not None:
                progress(done, total, items.quarantined)
        vectors.close()
        if thumbnails is not None:
            thumbnails.close()
        picture_hashes: NDArray[np.uint64] | None = None
        if wanted.picture_hash:
            picture_hashes = np.frombuffer(hashes, np.uint64)
            np.save(folder / HASHES_NAME, picture_hashes)
        items.duplicates = write_duplicates(folder / DUPLICATES_NAME, metadata, picture_hashes)
        items.named = metadata.finish()
    items.size = vectors.size
    return items


def _explain_nothing(images: str | Path | Sequence[str | Path], source: Source, folder: Path, quarantined: int) -> str:
    named = str(images) if isinstance(images, str | Path) else ", ".join(str(place) for place in images)
    if quarantined == 0:
        return f"no pictures in {named}: {source.found}"
    with (folder / QUARANTINE_NAME).open(encoding="utf-8") as stream:
        first = json.loads(stream.readline())
    if quarantined == 1:
        return f"the only picture in {named} cannot be used: {first['reason']}"
    return f"none of the {quarantined} pictures in {named} can be used; the first: {first['reason']}"
