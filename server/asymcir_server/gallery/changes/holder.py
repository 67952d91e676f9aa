"""The open gallery of a server: replaced as a whole, while every request keeps the one that it began with."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from asymcir_server.gallery.shards import ShardedGallery
from asymcir_server.gallery.store import Gallery

AnyGallery = Gallery | ShardedGallery


class GalleryHolder:
    """Holds the gallery that answers now. Safe to share between threads.

    A gallery that was replaced is closed when the last request that uses it has ended.
    """

    def __init__(self, gallery: AnyGallery, *, owned: bool = True) -> None:
        """Begin with one.

        Args:
            gallery: open.
            owned: close it once it is replaced, or with `close`; else whoever opened it does.
        """
        self._lock = threading.Lock()
        self._gallery = gallery
        self._leases: dict[int, int] = {}
        self._waiting: dict[int, AnyGallery] = {}  # replaced, and still in use
        self._kept = None if owned else gallery

    @property
    def current(self) -> AnyGallery:
        """The gallery that answers now; it may be closed at any time, so search it under a lease only."""
        return self._gallery

    @contextmanager
    def lease(self) -> Iterator[AnyGallery]:
        """Give the gallery that answers now, and keep it open for the block."""
        with self._lock:
            gallery = self._gallery
            self._leases[id(gallery)] = self._leases.get(id(gallery), 0) + 1
        try:
            yield gallery
        finally:
            with self._lock:
                self._leases[id(gallery)] -= 1
                if not self._leases[id(gallery)]:
                    del self._leases[id(gallery)]
                    ended = self._waiting.pop(id(gallery), None)
                else:
                    ended = None
            self._close(ended)

    def replace(self, gallery: AnyGallery) -> None:
        """Let another gallery answer the requests that begin from now on."""
        with self._lock:
            before, self._gallery = self._gallery, gallery
            if id(before) in self._leases:
                self._waiting[id(before)] = before
                return
        self._close(before)

    def close(self) -> None:
        """Close the gallery that answers; call it when no request is under way."""
        self._close(self._gallery)

    def _close(self, gallery: AnyGallery | None) -> None:
        if gallery is not None and gallery is not self._kept:
            gallery.close()
