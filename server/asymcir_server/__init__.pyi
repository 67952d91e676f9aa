from .encode.bundle import ServerBundle
from .encode.composition import Composer
from .encode.targets import TargetEncoder
from .encode.text_encoder import TextEncoder
from .encode.tokenizer import Tokenizer
from .encode.visual import VisualEncoder
from .gallery import (
    AddConfig,
    AddReport,
    BuildConfig,
    BuildReport,
    CompactReport,
    Editor,
    Gallery,
    IndexConfig,
    SearchResult,
    UpdateReport,
    add_pictures,
    build_gallery,
    compact_gallery,
    edit_gallery,
    plan_gallery,
)
from .serve.lifecycle import RetrievalServer, ServerConfig, serve
from .serve.service import RetrievalService, ServiceLimits

__all__ = [
    "AddConfig",
    "AddReport",
    "BuildConfig",
    "BuildReport",
    "CompactReport",
    "Composer",
    "Editor",
    "Gallery",
    "IndexConfig",
    "RetrievalServer",
    "RetrievalService",
    "SearchResult",
    "ServerBundle",
    "ServerConfig",
    "ServiceLimits",
    "TargetEncoder",
    "TextEncoder",
    "Tokenizer",
    "UpdateReport",
    "VisualEncoder",
    "add_pictures",
    "build_gallery",
    "compact_gallery",
    "edit_gallery",
    "plan_gallery",
    "serve",
]
