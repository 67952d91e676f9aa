"""The gRPC service: admission, status codes, start and drain."""

from asymcir_server.serve.lifecycle import RetrievalServer, ServerConfig, serve
from asymcir_server.serve.service import RetrievalService, ServiceLimits

__all__ = [
    "RetrievalServer",
    "RetrievalService",
    "ServerConfig",
    "ServiceLimits",
    "serve",
]
