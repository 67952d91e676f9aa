"""The snapshots that a gallery holds: listed, checked in full, made the current one again, and removed."""

import json
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from asymcir_common import BundleError, read_manifest
from asymcir_common.files import write_atomically
from asymcir_common.manifest import GALLERY, MANIFEST_NAME

from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.changes.delta import count_changes
from asymcir_server.gallery.changes.editor import explain_write_errors
from asymcir_server.gallery.changes.table import ChangesWriter, changes_path, remove_changes
from asymcir_server.gallery.snapshots import (
    CURRENT_NAME,
    SNAPSHOTS_NAME,
    current_snapshot,
    lock_gallery,
    snapshot_folders,
)
from asymcir_server.gallery.store import Gallery


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotRecord:
    """A snapshot on disk.

    Attributes:
        version: its number.
        current: whether it is the one that answers.
        size: N, pictures in it, changes included; None where its manifest cannot be read.
        target: its target type, "" where that cannot be read.
        index_kind: its index, "" where that cannot be read.
        size_bytes: of its files.
        added, removed, updated: pictures that the changes made to it concern.
    """

    version: str
    current: bool
    size: int | None
    target: str
    index_kind: str
    size_bytes: int
    added: int = 0
    removed: int = 0
    updated: int = 0


def list_snapshots(gallery: Path) -> list[SnapshotRecord]:
    """List the snapshots of a gallery, oldest first.

    Raises:
        BundleError: no gallery, or a damaged pointer.
    """
    current = current_snapshot(gallery).name
    return [_describe(gallery, folder, current) for folder in snapshot_folders(gallery)]


def verify_snapshots(gallery: Path, version: str | None = None) -> list[str]:
    """Read every file of a snapshot, or of all of them, and check it against its digest; then open it.

    The changes made to a snapshot are read and checked too. Opening a gallery checks large files by a sample. This
    reads all of them.

    Returns:
        The versions that were checked.

    Raises:
        BundleError: no gallery, no such snapshot, or a damaged file, named.
    """
    current_snapshot(gallery)
    folders = snapshot_folders(gallery) if version is None else [_find(gallery, version)]
    for folder in folders:
        read_manifest(folder, format=GALLERY)
        opened = Gallery(gallery, folder)
        try:
            opened.check_changes()
        finally:
            opened.close()
    return [folder.name for folder in folders]


def rollback(gallery: Path, version: str | None = None, *, discard_changes: bool = False) -> str:
    """Make an earlier snapshot the one that answers, with the changes made to it; the later ones stay.

    Args:
        gallery: its folder.
        version: its number; None for the one before the current one.
        discard_changes: undo the changes made to that snapshot, which cannot be taken back.

    Returns:
        Its number.

    Raises:
        BundleError: no gallery, no such snapshot, none before the current one, or a damaged one.
        GalleryBuildError: a build is running.
    """
    current_snapshot(gallery)  # the lock would make a gallery where there is none
    with lock_gallery(gallery, "gallery rollback"):
        current = current_snapshot(gallery).name
        if version is None:
            earlier = [folder.name for folder in snapshot_folders(gallery) if int(folder.name) < int(current)]
            if not earlier:
                raise BundleError(f"{gallery} has no snapshot before {current}: name another (--version)")
            version = earlier[-1]
        if discard_changes:
            _discard(gallery, _find(gallery, version))
        (checked,) = verify_snapshots(gallery, version)
        write_atomically(gallery / CURRENT_NAME, f"{checked}\n")
    return checked


def remove_old_snapshots(gallery: Path, *, keep: int = 2) -> list[str]:
    """Remove all but the newest snapshots; the current one stays always.

    A server that has one of them open goes on with it: its files are gone from the folder, not from under the server.

    Args:
        gallery: its folder.
        keep: how many of the newest stay, 1 or more.

    Returns:
        The numbers of those that were removed.

    Raises:
        BundleError: no gallery.
        GalleryBuildError: a build is running, `keep` is below 1, or a folder cannot be removed.
    """
    if keep < 1:
        raise GalleryBuildError(f"expected to keep 1 or more snapshots, got {keep}")
    current_snapshot(gallery)  # the lock would make a gallery where there is none
    with lock_gallery(gallery, "gallery gc"):
        current = current_snapshot(gallery).name  # no build or rollback changes it from here on
        removed = [folder for folder in snapshot_folders(gallery)[:-keep] if folder.name != current]
        for folder in removed:
            try:
                shutil.rmtree(folder)
                remove_changes(gallery, folder.name)
            except OSError as exc:
                raise GalleryBuildError(f"cannot remove {folder}: {exc.strerror or exc}") from exc
    return [folder.name for folder in removed]


def _find(gallery: Path, version: str) -> Path:
    """Find a snapshot by its number, with or without leading zeros."""
    folders = snapshot_folders(gallery)
    for folder in folders:
        if version.isdecimal() and int(folder.name) == int(version):
            return folder
    held = ", ".join(folder.name for folder in folders) or "none"
    raise BundleError(f"no snapshot {version} in {gallery / SNAPSHOTS_NAME}: it holds {held}")


def _discard(gallery: Path, snapshot: Path) -> None:
    """Undo the changes made to a snapshot; a file of them that cannot be read is removed."""
    if not changes_path(gallery, snapshot.name).exists():
        return
    size = int(read_manifest(snapshot, format=GALLERY, sampled=True).require("size"))
    try:
        with explain_write_errors(gallery), closing(ChangesWriter(gallery, snapshot, size)) as writer:
            writer.discard()
    except (BundleError, GalleryBuildError) as exc:
        if isinstance(exc.__cause__, OSError | sqlite3.OperationalError):
            raise
        remove_changes(gallery, snapshot.name)
        with explain_write_errors(gallery):  # servers notice another file, not a missing one
            ChangesWriter(gallery, snapshot, size).close()


def _describe(gallery: Path, folder: Path, current: str) -> SnapshotRecord:
    try:
        found = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["properties"]
        size, target, kind = int(found["size"]), str(found["target"]), str(found["index_kind"])
    except (OSError, ValueError, KeyError, TypeError):
        size, target, kind = None, "", ""
    changes = (0, 0, 0)
    with suppress(BundleError):
        if size is not None:
            changes = count_changes(changes_path(gallery, folder.name))
    return SnapshotRecord(
        version=folder.name,
        current=folder.name == current,
        size=None if size is None else size + changes[0] - changes[1],
        target=target,
        index_kind=kind,
        size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        added=changes[0],
        removed=changes[1],
        updated=changes[2],
    )
