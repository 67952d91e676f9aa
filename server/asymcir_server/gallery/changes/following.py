"""A server's galleries follow what is on disk: a new snapshot, and changes to the one that is open."""

import logging
import threading
import time
from collections.abc import Mapping
from types import TracebackType

import numpy as np
from asymcir_common import AsymcirError

from asymcir_server.gallery.changes.holder import GalleryHolder
from asymcir_server.gallery.changes.table import digest_base, mark_base
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
            holder: with a gallery that was opened from its folder.
            target_spaces: target type -> space that a snapshot may be of; None: any.
        """
        self.holder = holder
        self._target_spaces = target_spaces
        self._lock = threading.Lock()
        self._failed: tuple[object, float] | None = None
        self._said = ""

    def refresh(self) -> bool:
        """Look once, and let what is new answer.

        What cannot be opened (a damaged snapshot, another space, a folder that is gone) is logged, and the gallery that
        answers goes on.

        Returns:
            Whether something new answers.
        """
        with self._lock:
            before = self.holder.current
            try:
                newer = self._find_newer(before)
            except (AsymcirError, OSError) as exc:
                if str(exc) != self._said:
                    self._said = str(exc)
                    _log.warning("the gallery %s stays at %s: %s", before.folder, before.full_version, exc)
                return False
            self._said = ""
            if newer is before:
                return False
            self.holder.replace(newer)
            if newer.version != before.version:
                _log.info("the gallery %s answers from snapshot %s", before.folder, newer.full_version)
            return True

    def _find_newer(self, gallery: Gallery) -> Gallery:
        snapshot = current_snapshot(gallery.folder)
        mark = mark_base(snapshot)
        same = snapshot.name == gallery.version and (
            mark == gallery.mark or digest_base(snapshot) == gallery.identity  # copied back, say
        )
        if same or (self._failed is not None and self._failed[0] == mark and time.monotonic() < self._failed[1]):
            return gallery.refreshed()
        try:
            newer = Gallery.open(gallery.folder, self._target_spaces)
        except AsymcirError:
            self._failed = (mark, time.monotonic() + _RETRY_S)
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
