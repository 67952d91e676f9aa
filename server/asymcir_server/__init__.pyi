from .encode.bundle import ServerBundle
from .encode.composition import Composer
from .encode.targets import TargetEncoder
from .encode.text_encoder import TextEncoder
from .encode.tokenizer import Tokenizer
from .encode.visual import VisualEncoder
from .gallery import BuildConfig, BuildReport, Gallery, IndexConfig, SearchResult, build_gallery
from .serve.lifecycle import RetrievalServer, ServerConfig, serve
from .serve.service import RetrievalService, ServiceLimits

__all__ = [
    "BuildConfig",
    "BuildReport",
    "Composer",
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
    "VisualEncoder",
    "build_gallery",
    "serve",
]
