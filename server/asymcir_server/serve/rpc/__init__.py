"""The gRPC face: a loop that receives and sends, threads that answer."""

from asymcir_server.serve.rpc.server import GrpcServer

__all__ = ["GrpcServer"]
