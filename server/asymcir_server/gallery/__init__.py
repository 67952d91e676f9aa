"""Galleries: built from pictures as immutable snapshots, opened read-only, searched through an index."""

from asymcir_server.gallery.build import BuildConfig, build_gallery
from asymcir_server.gallery.changes.holder import GalleryHolder
from asymcir_server.gallery.indexes import IndexConfig
from asymcir_server.gallery.sources.entries import open_source
from asymcir_server.gallery.sources.reporting import BuildReport
from asymcir_server.gallery.store import Gallery, SearchResult

__all__ = [
    "BuildConfig",
    "BuildReport",
    "Gallery",
    "GalleryHolder",
    "IndexConfig",
    "SearchResult",
    "build_gallery",
    "open_source",
]
