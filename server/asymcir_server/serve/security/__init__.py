"""Who may call what, over TLS, and what every call of the gRPC face passes."""

from asymcir_server.serve.security.access import Access, Caller, current_caller
from asymcir_server.serve.security.keys import MAX_RATE, Key, KeyStore, create_key, read_keys, revoke_key
from asymcir_server.serve.security.tls import TlsConfig

__all__ = [
    "MAX_RATE",
    "Access",
    "Caller",
    "Key",
    "KeyStore",
    "TlsConfig",
    "create_key",
    "current_caller",
    "read_keys",
    "revoke_key",
]
