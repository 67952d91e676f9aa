"""Galleries: built from pictures as immutable snapshots, opened read-only, searched through an index."""

from asymcir_server.gallery.build import BuildConfig, build_gallery, plan_gallery
from asymcir_server.gallery.changes.adding import AddConfig, AddReport, add_pictures
from asymcir_server.gallery.changes.compaction import CompactReport, compact_gallery
from asymcir_server.gallery.changes.editor import Editor, UpdateReport, edit_gallery
from asymcir_server.gallery.changes.following import Follower
from asymcir_server.gallery.changes.holder import AnyGallery, GalleryHolder
from asymcir_server.gallery.indexes import IndexConfig
from asymcir_server.gallery.shards import ShardedGallery
from asymcir_server.gallery.sources.entries import open_source
from asymcir_server.gallery.sources.reporting import BuildReport
from asymcir_server.gallery.store import Gallery, SearchResult

__all__ = [
    "AddConfig",
    "AddReport",
    "AnyGallery",
    "BuildConfig",
    "BuildReport",
    "CompactReport",
    "Editor",
    "Follower",
    "Gallery",
    "GalleryHolder",
    "IndexConfig",
    "SearchResult",
    "ShardedGallery",
    "UpdateReport",
    "add_pictures",
    "build_gallery",
    "compact_gallery",
    "edit_gallery",
    "open_source",
    "plan_gallery",
]
