"""Galleries: built from pictures as immutable snapshots, opened read-only, searched through an index."""

from asymcir_server.gallery.build import BuildConfig, BuildReport, build_gallery
from asymcir_server.gallery.indexes import IndexConfig
from asymcir_server.gallery.sources import open_source
from asymcir_server.gallery.store import Gallery, SearchResult

__all__ = ["BuildConfig", "BuildReport", "Gallery", "IndexConfig", "SearchResult", "build_gallery", "open_source"]
