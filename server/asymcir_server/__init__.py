"""The server: the frozen text encoder, galleries, and the gRPC service. Runs on ONNX Runtime, without torch.

Names are imported when they are first used: the `asymcir` command reads `asymcir_server.commands` on every start, also
where the server's libraries are not installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asymcir_server.bundle import ServerBundle
    from asymcir_server.composition import Composer
    from asymcir_server.gallery import BuildConfig, BuildReport, Gallery, SearchResult, build_gallery
    from asymcir_server.lifecycle import RetrievalServer, ServerConfig, serve
    from asymcir_server.service import RetrievalService, ServiceLimits
    from asymcir_server.targets import TargetEncoder
    from asymcir_server.text_encoder import TextEncoder
    from asymcir_server.tokenizer import Tokenizer
    from asymcir_server.visual import VisualEncoder

__all__ = [
    "BuildConfig",
    "BuildReport",
    "Composer",
    "Gallery",
    "RetrievalServer",
    "RetrievalService",
    "SearchResult",
    "ServerBundle",
    "ServerConfig",
    "ServiceLimits",
    "TargetEncoder",
    "TextEncoder",
    "Tokenizer",
    "VisualEncoder",
    "build_gallery",
    "serve",
]

_MODULES = {
    "BuildConfig": "gallery",
    "BuildReport": "gallery",
    "Composer": "composition",
    "Gallery": "gallery",
    "RetrievalServer": "lifecycle",
    "RetrievalService": "service",
    "SearchResult": "gallery",
    "ServerBundle": "bundle",
    "ServerConfig": "lifecycle",
    "ServiceLimits": "service",
    "TargetEncoder": "targets",
    "TextEncoder": "text_encoder",
    "Tokenizer": "tokenizer",
    "VisualEncoder": "visual",
    "build_gallery": "gallery",
    "serve": "lifecycle",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
