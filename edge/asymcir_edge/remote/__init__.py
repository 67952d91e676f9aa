"""The client of a retrieval server: calls, answers and errors."""

from asymcir_edge.remote.admin import AddedPicture, CompactedGallery, GalleryAdmin, NewPicture
from asymcir_edge.remote.aio import AsyncRetrievalClient
from asymcir_edge.remote.answers import (
    GalleryDescription,
    SearchHit,
    SearchResult,
    SearchTiming,
    ServerDescription,
    ServerLimits,
)
from asymcir_edge.remote.client import RetrievalClient
from asymcir_edge.remote.credentials import Credentials

__all__ = [
    "AsyncRetrievalClient",
    "Credentials",
    "AddedPicture",
    "CompactedGallery",
    "GalleryAdmin",
    "GalleryDescription",
    "NewPicture",
    "RetrievalClient",
    "SearchHit",
    "SearchResult",
    "SearchTiming",
    "ServerDescription",
    "ServerLimits",
]
