"""The HTTP face: the services of the gRPC face as Connect, gRPC-Web and JSON; health, thumbnails and files."""

from asymcir_server.serve.http.config import HttpConfig
from asymcir_server.serve.http.server import HttpServer

__all__ = ["HttpConfig", "HttpServer"]
