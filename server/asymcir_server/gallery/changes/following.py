"""A server's galleries follow what is on disk: a new snapshot, and changes to the one that is open."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from asymcir_common import AsymcirError

from asymcir_server.gallery.changes.holder import GalleryHolder
from asymcir_server.gallery.changes.table import digest_base, mark_base
from asymcir_server.gallery.shards import ShardedGallery
from asymcir_server.gallery.snapshots import current_snapshot
from asymcir_server.gallery.store import Gallery

FOLLOW_INTERVAL_S = 0.25
_RETRY_S = 30.0
"""A snapshot that could not be opened is tried again after this time, or at once when it has changed."""

_log = logging.getLogger(__name__)


class Follower:
    """Keeps what a holder holds at what is on disk. Safe to share between threads."""

    def __init__(self, holder: GalleryHolder, target_spaces: Mapping[str, str] | None = None) -> None:
        """Prepare.

        Args:
            holder: with a gallery that was opened from its folder, or from those of its shards.
            target_spaces: target type -> space that a snapshot may be of; None: any.
        """
        self.holder = holder
        self._target_spaces = target_spaces
        self._lock = threading.Lock()
        self._failed: dict[Path, tuple[object, float]] = {}
        self._said: dict[Path, str] = {}

    def refresh(self) -> bool:
        """Look once, and let what is new answer.

        What cannot be opened (a damaged snapshot, another space, a folder that is gone) is logged, and the gallery that
        answers goes on; of a gallery in shards, that shard.

        Returns:
            Whether something new answers.
        """
        with self._lock:
            before = self.holder.current
            newer: Gallery | ShardedGallery
            if isinstance(before, ShardedGallery):
                spaces = {before.target: before.target_space}
                shards = [self._look(shard, spaces) for shard in before.shards]
                if all(newer is shard for newer, shard in zip(shards, before.shards, strict=True)):
                    return False
                # What stays is opened once more, since the gallery that is replaced closes its own.
                newer = ShardedGallery([shard.reopened() if shard in before.shards else shard for shard in shards])
            else:
                newer = self._look(before, self._target_spaces)
                if newer is before:
                    return False
            self.holder.replace(newer)
            return True

    def _look(self, before: Gallery, target_spaces: Mapping[str, str] | None) -> Gallery:
        """Return what is on disk now, or the gallery itself where nothing is new or it cannot be opened."""
        folder = before.folder
        try:
            newer = self._find_newer(before, target_spaces)
        except (AsymcirError, OSError) as exc:
            if str(exc) != self._said.get(folder):
                self._said[folder] = str(exc)
                _log.warning("the gallery %s stays at %s: %s", folder, before.full_version, exc)
            return before
        self._said.pop(folder, None)
        if newer.version != before.version:
            _log.info("the gallery %s answers from snapshot %s", folder, newer.full_version)
        return newer

    def _find_newer(self, gallery: Gallery, target_spaces: Mapping[str, str] | None) -> Gallery:
        snapshot = current_snapshot(gallery.folder)
        mark = mark_base(snapshot)
        same = snapshot.name == gallery.version and (
            mark == gallery.mark or digest_base(snapshot) == gallery.identity  # copied back, say
        )
        failed = self._failed.get(gallery.folder)
        if same or (failed is not None and failed[0] == mark and time.monotonic() < failed[1]):
            return gallery.refreshed()
        try:
            newer = Gallery.open(gallery.folder, target_spaces)
        except AsymcirError:
            self._failed[gallery.folder] = (mark, time.monotonic() + _RETRY_S)
            raise
        newer.search(np.ones((1, newer.embedding_width), np.float32), 1)  # its first pages, before a caller waits
        return newer


class FollowThread:
    """Refreshes followers several times a second until it is closed."""

    def __init__(self, followers: Mapping[str, Follower], interval_s: float = FOLLOW_INTERVAL_S) -> None:
        """Start."""
        self._followers, self._interval_s = followers, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; returns when nothing is being refreshed any more."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> "FollowThread":
        """Do nothing more."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self.close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            for name, follower in self._followers.items():
                try:
                    follower.refresh()
                except Exception:  # whatever it is, the server goes on with what it has
                    _log.exception("following the gallery %s failed", name)
