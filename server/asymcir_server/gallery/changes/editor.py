"""The one writer of a gallery's changes: adds, removes, and updates metadata, each change durable when it returns."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asymcir_common.manifest import MANIFEST_NAME
from asymcir_protos.v1 import retrieval_pb2

from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.changes.table import ChangesWriter, NewPicture, digest_base
from asymcir_server.gallery.filters import DEFAULT_ITEM_COLUMN, explain_item, read_item
from asymcir_server.gallery.snapshots import current_snapshot, lock_gallery
from asymcir_server.gallery.sources.entries import MAX_METADATA_BYTES
from asymcir_server.gallery.store import Gallery

ADDED, REPLACED, UNCHANGED, REJECTED = "added", "replaced", "unchanged", "rejected"
_TAKEN = "its id is taken by another picture: remove that one, or replace it (--replace)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a picture that was to be added.

    Attributes:
        id: of the picture.
        status: ADDED, REPLACED, UNCHANGED (the gallery holds this id with this file) or REJECTED.
        reason: of a rejected one.
    """

    id: str
    status: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What became of new metadata.

    Attributes:
        updated: pictures whose metadata are others now.
        unchanged: pictures that had them already.
        missing: ids that the gallery does not hold, in the order they came.
    """

    updated: int
    unchanged: int
    missing: Sequence[str]


class Editor:
    """Changes a gallery; see `edit_gallery`.

    Attributes:
        gallery: as it is after the last change.
        properties: of the snapshot's manifest.
        item_column: the metadata key that names an item.
    """

    def __init__(self, gallery: Gallery, snapshot: Path) -> None:
        """Open the changes for writing.

        Args:
            gallery: open; it is closed once there is a newer one.
            snapshot: the current one, which it shows.
        """
        self.gallery = gallery
        self.folder = snapshot
        record = json.loads((snapshot / MANIFEST_NAME).read_text(encoding="utf-8"))  # verified when it was opened
        self.properties: Mapping[str, Any] = record["properties"]
        self.files = frozenset(record["files"])
        self.item_column = str(self.properties.get("item_column", DEFAULT_ITEM_COLUMN))
        self._writer = ChangesWriter(gallery.folder, snapshot, int(self.properties["size"]))

    def add(self, pictures: Sequence[NewPicture], *, replace: bool = False) -> list[Outcome]:
        """Add pictures, all in one change.

        Args:
            pictures: what the gallery holds already, by id and file, is passed over.
            replace: a picture whose id another one has takes its place; otherwise it is rejected.

        Returns:
            What became of each.
        """
        held = self.gallery.rows([picture.id for picture in pictures])
        digests = {identity: self.gallery.digest(identity) for identity in held}
        rows, outcomes = dict(held), list[Outcome]()
        with self._writer.transaction() as change:
            for picture in pictures:
                status = ADDED
                if picture.id in rows:
                    if digests[picture.id] == picture.digest:
                        outcomes.append(Outcome(id=picture.id, status=UNCHANGED))
                        continue
                    if not replace:
                        outcomes.append(Outcome(id=picture.id, status=REJECTED, reason=_TAKEN))
                        continue
                    self._writer.remove(change, rows[picture.id], picture.id)
                    status = REPLACED
                rows[picture.id] = self._writer.add(change, picture)
                digests[picture.id] = picture.digest
                outcomes.append(Outcome(id=picture.id, status=status))
        self._refresh()
        return outcomes

    def remove(self, ids: Sequence[str]) -> tuple[int, list[str]]:
        """Remove pictures, all in one change.

        Returns:
            How many there were, and the ids that the gallery does not hold.
        """
        wanted = list(dict.fromkeys(self.gallery.canonical(ids)))
        held = self.gallery.rows(wanted)
        with self._writer.transaction() as change:
            for identity, row in held.items():
                self._writer.remove(change, row, identity)
        self._refresh()
        return len(held), [identity for identity in wanted if identity not in held]

    def select(self, where: retrieval_pb2.Filter) -> list[str]:
        """Return the ids of the pictures that satisfy a filter.

        Raises:
            RequestError: the filter does not fit.
        """
        return self.gallery.select(where)

    def update(self, changes: Sequence[tuple[str, Mapping[str, Any]]]) -> UpdateReport:
        """Set metadata keys of pictures, all in one change.

        Args:
            changes: id and keys with their new values; None removes a key, keys that are not named stay.

        Raises:
            GalleryBuildError: a picture's item would not be usable, or its metadata would be too large.
        """
        spelled = self.gallery.canonical([identity for identity, _ in changes])
        changes = [(identity, keys) for identity, (_, keys) in zip(spelled, changes, strict=True)]
        wanted = list(dict.fromkeys(spelled))
        rows = self.gallery.rows(wanted)
        before = dict(zip(wanted, self.gallery.metadata(wanted), strict=True))
        after = {identity: dict(record) for identity, record in before.items() if identity in rows}
        for identity, keys in changes:
            if identity in after:
                merged = after[identity] | dict(keys)
                after[identity] = {key: value for key, value in merged.items() if value is not None}
        others = {identity: record for identity, record in after.items() if record != before[identity]}
        for identity, record in others.items():
            problem = explain_item(record, self.item_column)
            if problem is None and (held := len(json.dumps(record, ensure_ascii=False).encode())) > MAX_METADATA_BYTES:
                problem = f"it would have {held} bytes as JSON, a picture's may have {MAX_METADATA_BYTES}"
            if problem is not None:
                raise GalleryBuildError(f"cannot change the metadata of {identity}: {problem}")
        with self._writer.transaction() as change:
            for identity, record in others.items():
                self._writer.update(change, rows[identity], identity, read_item(record, self.item_column), record)
        self._refresh()
        return UpdateReport(
            updated=len(others),
            unchanged=len(after) - len(others),
            missing=[identity for identity in wanted if identity not in rows],
        )

    def discard(self) -> int:
        """Undo every change made to the snapshot; returns how many rows they concerned."""
        count = self._writer.discard()
        self._refresh()
        return count

    def close(self) -> None:
        """Close the file of changes and the gallery."""
        self._writer.close()
        self.gallery.close()

    def _refresh(self) -> None:
        before, self.gallery = self.gallery, self.gallery.refreshed()
        if before is not self.gallery:
            before.close()


@contextlib.contextmanager
def edit_gallery(
    folder: str | Path, command: str, *, opened: Gallery | None = None, wait_s: float = 0.0
) -> Iterator[Editor]:
    """Hold a gallery as its one writer, with its current snapshot and changes open.

    Args:
        folder: the gallery.
        command: what changes it, for the error of another writer.
        opened: the gallery as somebody has it open; its files are shared if its snapshot is still the current one.
        wait_s: how long to wait for another writer.

    Raises:
        BundleError: no gallery, or a damaged one.
        GalleryLockedError: another writer holds it.
        GalleryBuildError: it cannot be written.
    """
    folder = Path(folder)
    current_snapshot(folder)  # the lock would make a gallery where there is none
    with lock_gallery(folder, command, wait_s=wait_s), explain_write_errors(folder):
        snapshot = current_snapshot(folder)
        if opened is not None and opened.version == snapshot.name and opened.identity == digest_base(snapshot):
            gallery = Gallery(folder, snapshot, shares=opened)
        else:
            gallery = Gallery(folder, snapshot)
        try:
            editor = Editor(gallery, snapshot)
        except BaseException:
            gallery.close()
            raise
        try:
            yield editor
        finally:
            editor.close()


@contextlib.contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Say what a failed write leaves behind.

    Raises:
        GalleryBuildError: the block could not write.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as exc:
        raise GalleryBuildError(
            f"cannot write to the gallery {folder}: {exc}; what was not acknowledged is not kept: free space, try again"
        ) from exc
