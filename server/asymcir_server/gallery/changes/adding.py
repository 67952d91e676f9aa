"""Adding pictures: read, decoded and encoded as a build does it, and put among the changes batch by batch.

Each batch is one change: durable and visible when it is reported. An `add` that is killed leaves the batches that it
reported; when it is run again it passes over what is there.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asymcir_common import BundleError
from asymcir_common.arguments import MAX_BATCH_SIZE, MAX_THREADS
from asymcir_common.places import Rejected
from numpy.typing import NDArray

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.targets import TargetEncoder
from asymcir_server.encode.vectors import usable_rows
from asymcir_server.encode.visual import VisualEncoder
from asymcir_server.errors import GalleryBuildError, SpaceMismatchError
from asymcir_server.gallery.changes.editor import ADDED, REJECTED, REPLACED, UNCHANGED, Editor, Outcome, edit_gallery
from asymcir_server.gallery.changes.table import NewPicture
from asymcir_server.gallery.filters import explain_item, read_item
from asymcir_server.gallery.sources.completion import complete
from asymcir_server.gallery.sources.decode import decode_batches
from asymcir_server.gallery.sources.encoded import Encoded, SnapshotPictures, Wanted, encoder_digest
from asymcir_server.gallery.sources.entries import Entry, open_source
from asymcir_server.gallery.sources.near_duplicates import HASHES_NAME
from asymcir_server.gallery.sources.reporting import ReasonCounts

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, int], None]
"""Called with entries done, entries in all, and entries rejected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AddConfig:
    """How to add.

    Attributes:
        batch_size: pictures per run of the visual encoder and per change, at most MAX_BATCH_SIZE.
        workers: threads that read and decode, at most MAX_THREADS; 0: one per core, at most 8.
        replace: a picture whose id another one has takes its place; otherwise it is rejected.
        wait_s: how long to wait for another writer.
    """

    batch_size: int = 32
    workers: int = 0
    replace: bool = False
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE or not 0 <= self.workers <= MAX_THREADS:
            raise GalleryBuildError(
                f"expected a batch size from 1 to {MAX_BATCH_SIZE} and 0 to {MAX_THREADS} workers, "
                f"got {self.batch_size} and {self.workers}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AddReport:
    """What was added.

    Attributes:
        version: the snapshot that was changed.
        change: the number of the last change made to it.
        size: N, pictures in the gallery now.
        pending: of these, added since the snapshot was written.
        added, replaced, unchanged: pictures; unchanged ones were there by id and file.
        encoded: pictures that went through the visual encoder.
        rejected: those put aside, with the reason.
        rejected_by_reason: kind of reason, without names and numbers -> pictures, the most frequent first.
        passed_over: suffix -> files of folders and archives that are not taken for pictures.
        elapsed_s: wall clock.
    """

    version: str
    change: int
    size: int
    pending: int
    added: int
    replaced: int
    unchanged: int
    encoded: int
    rejected: Sequence[Rejected]
    rejected_by_reason: Mapping[str, int]
    passed_over: Mapping[str, int]
    elapsed_s: float


class Encoder:
    """Makes target representations of pictures with one bundle; opens its towers once. Safe to share between threads.

    Attributes:
        bundle: the bundle.
    """

    def __init__(self, bundle: ServerBundle, targets: TargetEncoder | None = None) -> None:
        """Open the visual tower.

        Args:
            bundle: the bundle.
            targets: one that is there already.
        """
        self.bundle = bundle
        self._visual = VisualEncoder(bundle)
        self._targets = targets or TargetEncoder(bundle)

    def encode(self, pixels: NDArray[np.uint8], target: str) -> NDArray[np.float32]:
        """Encode preprocessed pictures [b, S, S, 3] to target representations [b, E]."""
        return self._targets.compute_targets(self._visual.encode_image(pixels), target)


class KnownPictures:
    """The pictures that a gallery holds; what is added is found there once its batch is written.

    Attributes:
        identity: of the snapshot.
    """

    def __init__(self, identity: str, pictures: SnapshotPictures | None) -> None:
        """Use `open`."""
        self.identity = identity
        self._pictures = pictures

    @classmethod
    def open(cls, editor: Editor, bundle: ServerBundle) -> "KnownPictures":
        """Open what the gallery knows; nothing where another export of the same model made its vectors."""
        try:
            pictures = SnapshotPictures(editor.folder, _describe_wanted(editor, bundle), sampled=True)
        except BundleError as exc:
            _log.debug("%s gives no vectors: %s", editor.folder, exc)
            return cls(editor.gallery.identity, None)
        return cls(editor.gallery.identity, pictures)

    def find(self, digest: bytes) -> Encoded:
        """Return what is known of a picture."""
        return Encoded() if self._pictures is None else self._pictures.find(digest)

    def add(self, pictures: Iterable[tuple[bytes, Encoded]]) -> None:
        """Do nothing: the gallery itself keeps them."""

    def close(self) -> None:
        """Close the snapshot's files."""
        if self._pictures is not None:
            self._pictures.close()


class Adder:
    """Adds pictures to a gallery that is being edited. Not for several threads at once.

    Attributes:
        encoded: pictures that went through the visual encoder so far.
    """

    def __init__(self, editor: Editor, encoder: Encoder, config: AddConfig, known: KnownPictures) -> None:
        """Check that they fit each other.

        Args:
            editor: of the gallery.
            encoder: makes the vectors.
            config: how.
            known: the pictures of the same gallery.

        Raises:
            SpaceMismatchError: the bundle makes vectors of another space than the gallery's.
        """
        bundle, gallery = encoder.bundle, editor.gallery
        self.encoded = 0
        self._editor, self._encoder, self._config = editor, encoder, config
        if bundle.target_spaces.get(gallery.target) != gallery.target_space:
            raise SpaceMismatchError(
                f"the gallery {gallery.folder} is of the target space {gallery.target_space} ({gallery.target}), the "
                f"server bundle makes {bundle.target_spaces.get(gallery.target)}: pass the bundle that built it"
            )
        self._wanted = _describe_wanted(editor, bundle)
        self._known = known

    def add(self, entries: Iterable[Entry | Rejected]) -> Iterator[list[Outcome]]:
        """Add pictures; yields what became of each, batch by batch, once the batch is durable and visible."""
        known, target = self._known, self._editor.gallery.target

        def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            return self._encoder.encode(pixels, target)

        batches = decode_batches(
            entries,
            self._encoder.bundle.preprocessing,
            known,
            self._wanted,
            batch_size=self._config.batch_size,
            workers=self._config.workers,
        )
        with contextlib.closing(batches):
            for pictures, rejected in batches:
                completed, count = complete(pictures, known, encode)
                self.encoded += count
                outcomes = [Outcome(id=item.id, status=REJECTED, reason=item.reason) for item in rejected]
                new = list[NewPicture]()
                for picture, made in zip(pictures, completed, strict=True):
                    entry, column = picture.entry, self._editor.item_column
                    vector = np.zeros(self._wanted.width, np.float32) if made.vector is None else made.vector
                    problem = explain_item(entry.metadata, column)
                    if not usable_rows(vector[None])[0]:
                        problem = "the visual encoder gives it no direction (not finite, or zero)"
                    if problem is not None:
                        outcomes.append(Outcome(id=entry.id, status=REJECTED, reason=problem))
                        continue
                    new.append(
                        NewPicture(
                            id=entry.id,
                            item=read_item(entry.metadata, column),
                            digest=picture.digest,
                            metadata=entry.metadata,
                            vector=vector,
                            encoder=self._wanted.encoder,
                            thumbnail=made.thumbnail,
                            picture_hash=made.picture_hash,
                        )
                    )
                yield [*self._editor.add(new, replace=self._config.replace), *outcomes]


def _describe_wanted(editor: Editor, bundle: ServerBundle) -> Wanted:
    gallery = editor.gallery
    return Wanted(
        encoder=encoder_digest(bundle, gallery.target),
        width=gallery.embedding_width,
        thumbnail_side=gallery.thumbnail_side,
        picture_hash=HASHES_NAME in editor.files,
    )


def add_pictures(
    gallery: str | Path,
    images: str | Path | Sequence[str | Path],
    bundle: ServerBundle,
    *,
    config: AddConfig | None = None,
    progress: Progress | None = None,
) -> AddReport:
    """Add pictures to a gallery; they are found from the moment that their batch is written.

    Args:
        gallery: its folder.
        images: what `build_gallery` takes.
        bundle: makes the vectors.
        config: defaults to `AddConfig()`.
        progress: called after every batch.

    Raises:
        BundleError: no gallery, or a damaged one.
        GalleryBuildError: nothing to read, another writer, or a gallery that cannot be written.
        SpaceMismatchError: the bundle makes vectors of another space.
    """
    gallery = Path(gallery)
    started_s = time.monotonic()
    config = config or AddConfig()
    source = open_source(images)
    counts, reasons, rejected, done = dict.fromkeys((ADDED, REPLACED, UNCHANGED), 0), ReasonCounts(), [], 0
    with edit_gallery(gallery, "gallery add", wait_s=config.wait_s) as editor:
        with contextlib.closing(KnownPictures.open(editor, bundle)) as known:
            adder = Adder(editor, Encoder(bundle), config, known)
            for outcomes in adder.add(source):
                for outcome in outcomes:
                    done += 1
                    if outcome.status == REJECTED:
                        item = Rejected(id=outcome.id, path=outcome.id, reason=outcome.reason)
                        rejected.append(item)
                        reasons.add(item)
                    else:
                        counts[outcome.status] += 1
                if progress is not None:
                    progress(done, len(source), len(rejected))
        return AddReport(
            version=editor.gallery.version,
            change=editor.gallery.change,
            size=editor.gallery.size,
            pending=editor.gallery.describe_changes()[0],
            added=counts[ADDED],
            replaced=counts[REPLACED],
            unchanged=counts[UNCHANGED],
            encoded=adder.encoded,
            rejected=rejected,
            rejected_by_reason=reasons.most_common(),
            passed_over=source.passed_over,
            elapsed_s=time.monotonic() - started_s,
        )
