"""Building a gallery: pictures in, an immutable snapshot out.

Worker threads read and decode (`decode.py`); this thread encodes whole batches and writes, in memory that does not grow
with the gallery. A picture that cannot be read goes to `quarantine.jsonl` with the reason, and the build goes on.
"""

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from asymcir_common import write_manifest
from asymcir_common.arguments import MAX_BATCH_SIZE, MAX_THREADS
from asymcir_common.manifest import GALLERY, MANIFEST_NAME
from asymcir_common.places import Rejected

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.targets import TargetEncoder
from asymcir_server.encode.vectors import usable_rows
from asymcir_server.encode.visual import VisualEncoder
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.decode import decode_batches
from asymcir_server.gallery.indexes import INDEX_NAME, IndexConfig, build_index
from asymcir_server.gallery.metadata import MetadataWriter
from asymcir_server.gallery.snapshots import current_snapshot, lock_gallery, new_snapshot, publish
from asymcir_server.gallery.sources import Source, open_source
from asymcir_server.gallery.vectors_file import VectorWriter

VECTORS_NAME = "vectors.npy"
METADATA_NAME = "metadata.sqlite"
QUARANTINE_NAME = "quarantine.jsonl"

_log = logging.getLogger(__name__)

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
    """

    target: str | None = None
    batch_size: int = 32
    workers: int = 0
    replace_space: bool = False
    index: IndexConfig = field(default_factory=IndexConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE or not 0 <= self.workers <= MAX_THREADS:
            raise GalleryBuildError(
                f"expected a batch size from 1 to {MAX_BATCH_SIZE} and 0 to {MAX_THREADS} workers, "
                f"got {self.batch_size} and {self.workers}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What was built.

    Attributes:
        snapshot: its folder.
        version: its number, as answers name it.
        target: its target type.
        size: N, pictures in it.
        quarantined: pictures put aside.
        index_kind: its index.
        index_recall_at_10: measured against brute force.
        elapsed_s: wall clock.
    """

    snapshot: Path
    version: str
    target: str
    size: int
    quarantined: int
    index_kind: str
    index_recall_at_10: float
    elapsed_s: float


def build_gallery(
    images: str | Path | Sequence[str | Path],
    bundle: ServerBundle,
    out: Path,
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
    started_s = time.monotonic()
    config = config or BuildConfig()
    target = config.target or bundle.default_target
    target_space = bundle.target_space(target)
    source = open_source(images)
    with lock_gallery(out), _explain_write_errors(out):
        if not config.replace_space:
            _refuse_other_space(out, target_space)
        with new_snapshot(out) as (folder, version):
            size, quarantined = _write_items(source, bundle, folder, target, config, progress)
            if size == 0:
                raise GalleryBuildError(_explain_nothing(images, source, folder, quarantined))
            index = build_index(folder / VECTORS_NAME, folder / INDEX_NAME, config.index)
            write_manifest(
                folder,
                format=GALLERY,
                properties={
                    "version": version,
                    "target": target,
                    "target_space": target_space,
                    "size": size,
                    "embedding_width": bundle.text.embedding_width,
                    **index,
                },
                sampled=True,
            )
            snapshot = publish(out, folder, version)
    return BuildReport(
        snapshot=snapshot,
        version=version,
        target=target,
        size=size,
        quarantined=quarantined,
        index_kind=index["index_kind"],
        index_recall_at_10=index["index_recall_at_10"],
        elapsed_s=time.monotonic() - started_s,
    )


@contextlib.contextmanager
def _explain_write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as exc:
        raise GalleryBuildError(
            f"cannot write the gallery {out}: {exc}; the snapshot before stays, free space or choose another --gallery"
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


def _write_items(
    source: Source, bundle: ServerBundle, folder: Path, target: str, config: BuildConfig, progress: Progress | None
) -> tuple[int, int]:
    total = len(source)
    done = quarantined = 0
    visual = VisualEncoder(bundle)
    targets = TargetEncoder(bundle)
    with contextlib.ExitStack() as stack:
        vectors = VectorWriter(folder / VECTORS_NAME, bundle.text.embedding_width)
        stack.callback(vectors.abort)
        metadata = MetadataWriter(folder / METADATA_NAME)
        stack.callback(metadata.close)
        quarantine = stack.enter_context((folder / QUARANTINE_NAME).open("w", encoding="utf-8"))
        batches = stack.enter_context(
            contextlib.closing(
                decode_batches(source, bundle.preprocessing, batch_size=config.batch_size, workers=config.workers)
            )
        )
        for entries, pixels, rejected in batches:
            done += len(entries) + len(rejected)
            if entries:
                vectors_batch = targets.compute_targets(visual.encode_image(pixels), target)  # [b, E]
                usable = usable_rows(vectors_batch)
                for entry, vector, good in zip(entries, vectors_batch, usable, strict=True):
                    reason = None
                    if not good:
                        reason = "the visual encoder gives it no direction (not finite, or zero)"
                    elif not metadata.add(vectors.size, entry.id, entry.metadata):
                        reason = "its id is taken by an earlier picture: ids must be unique"
                    if reason is None:
                        vectors.append(vector[None])
                    else:
                        rejected.append(Rejected(id=entry.id, path=entry.path, reason=reason))
            for item in rejected:
                _quarantine(quarantine, item)
            quarantined += len(rejected)
            if progress is not None:
                progress(done, total, quarantined)
        vectors.close()
    return vectors.size, quarantined


def _quarantine(stream: TextIO, item: Rejected) -> None:
    record = {"id": item.id, "path": item.path, "reason": item.reason}
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    stream.write(f"{line}\n")


def _explain_nothing(images: str | Path | Sequence[str | Path], source: Source, folder: Path, quarantined: int) -> str:
    named = str(images) if isinstance(images, str | Path) else ", ".join(str(place) for place in images)
    if quarantined == 0:
        return f"no pictures in {named}: {source.found}"
    with (folder / QUARANTINE_NAME).open(encoding="utf-8") as stream:
        first = json.loads(stream.readline())
    if quarantined == 1:
        return f"the only picture in {named} cannot be used: {first['reason']}"
    return f"none of the {quarantined} pictures in {named} can be used; the first: {first['reason']}"
