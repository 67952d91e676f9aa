"""Who may call what, and what every call of the gRPC face passes."""

from asymcir_server.serve.security.interceptor import Gate

__all__ = ["Gate"]
