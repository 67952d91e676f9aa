"""A gallery's folder on disk: numbered immutable snapshots, the pointer to the current one, and the builder's lock.

    GALLERY/CURRENT                 one line, the number of the snapshot that answers; replaced atomically
    GALLERY/snapshots/000001/       an immutable bundle
    GALLERY/snapshots/.building-*   a snapshot being written; has no name that loads
    GALLERY/.building/              what the running or an interrupted build has encoded; see sources/encoded.py
    GALLERY/changes/000001.sqlite   the changes made to a snapshot; see changes/table.py
    GALLERY/.build.lock             held (flock) by the one writer that may run, and names it

A builder may die at any point: until CURRENT is replaced the old snapshot answers, and after it the new one is complete
and on disk.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from asymcir_common import BundleError
from asymcir_common.files import write_atomically

from asymcir_server.errors import GalleryBuildError, GalleryLockedError

CURRENT_NAME = "CURRENT"
SNAPSHOTS_NAME = "snapshots"
LOCK_NAME = ".build.lock"
BUILDING_NAME = ".building"
_BUILDING_PREFIX = ".building-"
_LOCK_POLL_S = 0.05
_NUMBER = re.compile(r"\d{6,}")


def current_snapshot(gallery: Path) -> Path:
    """Return the folder of the snapshot that answers.

    Raises:
        BundleError: no gallery, or a damaged pointer.
    """
    pointer = gallery / CURRENT_NAME
    try:
        version = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError as exc:
        raise BundleError(
            f"{gallery} holds no finished gallery (no {CURRENT_NAME}): build one with `asymcir gallery build`"
        ) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise BundleError(f"cannot read {pointer}: {exc}; build the gallery again") from exc
    if not _NUMBER.fullmatch(version):
        raise BundleError(f"{pointer} is damaged (expected a number like 000001): build the gallery again")
    return gallery / SNAPSHOTS_NAME / version


def snapshot_folders(gallery: Path) -> list[Path]:
    """List the folders of the finished snapshots, oldest first."""
    found = [path for path in (gallery / SNAPSHOTS_NAME).iterdir() if _NUMBER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name))


def is_gallery(folder: Path) -> bool:
    """Say whether a folder is a gallery, finished or just begun."""
    return any((folder / name).exists() for name in (CURRENT_NAME, LOCK_NAME, BUILDING_NAME))


@contextmanager
def lock_gallery(gallery: Path, command: str = "gallery build", *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a gallery for one writer, creating its folder where there is none.

    The lock goes with the process, so a killed writer leaves none behind. A snapshot that a killed build left
    half-written is removed here, where no other build can be running; what it encoded stays in `.building` for this
    one. A build that fails leaves no folder that it made, but for what it encoded.

    Args:
        gallery: its folder.
        command: what holds it, for the error of another writer.
        wait_s: how long to wait for another writer.

    Raises:
        GalleryLockedError: another writer holds it.
        GalleryBuildError: the folder is something else and not empty.
    """
    if gallery.exists() and not gallery.is_dir():
        raise GalleryBuildError(f"{gallery} exists and is not a folder: choose another --gallery")
    made = [path for path in (gallery / SNAPSHOTS_NAME, gallery) if not path.exists()]
    try:
        if gallery.is_dir() and not is_gallery(gallery) and any(gallery.iterdir()):
            raise GalleryBuildError(f"{gallery} exists, is not empty and is not a gallery: choose another --gallery")
        (gallery / SNAPSHOTS_NAME).mkdir(parents=True, exist_ok=True)
        handle = os.open(gallery / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as exc:
        raise GalleryBuildError(f"cannot write to {gallery}: {exc.strerror}; choose another --gallery") from exc
    try:
        _take_lock(gallery, handle, command, wait_s)
        _remove_leftovers(gallery)
        try:
            yield
        except BaseException:
            _remove_made(gallery, made)
            raise
    finally:
        os.close(handle)


@contextmanager
def new_snapshot(gallery: Path) -> Iterator[tuple[Path, str]]:
    """Give a hidden folder to write the next snapshot into; call `publish` on it, or it is removed at the end.

    Yields:
        The hidden folder, and the version it will have.
    """
    taken = [int(path.name) for path in snapshot_folders(gallery)]
    version = f"{max(taken, default=0) + 1:06d}"
    folder = gallery / SNAPSHOTS_NAME / f"{_BUILDING_PREFIX}{version}"
    folder.mkdir()
    try:
        yield folder, version
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def publish(gallery: Path, folder: Path, version: str) -> Path:
    """Make a written snapshot the one that answers: flush it to disk, give it its name, then move the pointer.

    Returns:
        The snapshot's folder.
    """
    for path in folder.iterdir():
        _flush(path)
    _flush(folder)
    snapshot = gallery / SNAPSHOTS_NAME / version
    folder.rename(snapshot)
    _flush(snapshot.parent)
    write_atomically(gallery / CURRENT_NAME, f"{version}\n")
    return snapshot


def _take_lock(gallery: Path, handle: int, command: str, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as exc:
            if time.monotonic() < deadline_s:
                time.sleep(_LOCK_POLL_S)
                continue
            raise GalleryLockedError(
                f"another writer holds {gallery}: {_read_owner(handle)}; wait for it, or stop it"
            ) from exc
    since = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)


def _read_owner(handle: int) -> str:
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
        return f"`asymcir {owner['command']}`, process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its name cannot be read"


def _remove_leftovers(gallery: Path) -> None:
    for path in (gallery / SNAPSHOTS_NAME).glob(f"{_BUILDING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in gallery.glob(f".{CURRENT_NAME}.*.tmp"):
        path.unlink(missing_ok=True)


def _remove_made(gallery: Path, made: Sequence[Path]) -> None:
    """Remove the folders that this build made, the innermost first, and its lock; those that hold a snapshot stay."""
    with suppress(OSError):
        for path in made:
            path.rmdir()
            (gallery / LOCK_NAME).unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
