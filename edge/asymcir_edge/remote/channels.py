"""The options of a connection, which the clients share."""

import ipaddress
import json
import math
import os
import re
from urllib.parse import urlsplit

from asymcir_common import TokensError
from asymcir_protos.tokens import TokenEncoding

from asymcir_edge.errors import AddressError, RequestRefusedError

DEFAULT_TIMEOUT_S = 10.0

_ADDRESS = re.compile(r"unix:.+|(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\]):\d+", re.IGNORECASE)

# The calls of Retrieval only read, so one that a server did not take may be sent again: gRPC waits about 0.2, 0.4 and
# 0.8 s (each 20% more or less, by chance), or as long as the server's `grpc-retry-pushback-ms` says. When more than
# half of the calls fail, it stops repeating: a full server is not helped by more requests.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "asymcir.v1.Retrieval"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
}
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # the first that is set decides
_SPARING_VARIABLES = ("no_grpc_proxy", "no_proxy")
_CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    # A server answers more than one ping in 5 minutes without data, or pings without a call, with GOAWAY.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Routers of mobile networks forget an idle connection within minutes: a new one costs less than a dead one.
    ("grpc.client_idle_timeout_ms", 240_000),
    # After an outage the next call must not wait for the default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def check_connection(address: str, timeout_s: float, token_encoding: TokenEncoding) -> None:
    """Check what a client was made with.

    Raises:
        AddressError: the address is not HOST:PORT, [IPV6]:PORT or unix:PATH.
        RequestRefusedError: timeout_s is not above 0, or infinite.
        TokensError: the token encoding is unknown.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"] or 1) <= 65535:
        raise AddressError(
            f"expected a server address HOST:PORT, such as localhost:50051, or unix:PATH, got {address!r}"
        )
    if not 0 < timeout_s < math.inf:
        raise RequestRefusedError(f"expected a finite timeout above 0 seconds, got {timeout_s:g}")
    if token_encoding not in ("fp16", "int8"):
        raise TokensError(f"expected the token encoding fp16 or int8, got {token_encoding!r}")


def options_for(address: str) -> list[tuple[str, str | int]]:
    """Return the channel's options: what listens on this machine is never asked through the proxy of `http_proxy`."""
    direct: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)] if _LOOPBACK.fullmatch(address) else []
    return [*_CHANNEL_OPTIONS, *direct]


def find_proxy(address: str) -> str | None:
    """Return how gRPC reaches an address where the environment names a proxy: "http://proxy:3128 (of https_proxy)".

    None where it connects by itself. A user and a password of the proxy are left out.

    Source: gRPC core, `http_proxy_mapper.cc`: the variables, and which hosts `no_proxy` spares.
    """
    if address.startswith("unix:") or _LOOPBACK.fullmatch(address):
        return None
    variable = next((name for name in _PROXY_VARIABLES if name in os.environ), None)
    if variable is None:
        return None
    try:
        proxy = urlsplit(os.environ[variable])
        place = f"{proxy.scheme}://{proxy.hostname}" + (f":{proxy.port}" if proxy.port else "")
    except ValueError:
        return None
    spared = next((os.environ[name] for name in _SPARING_VARIABLES if name in os.environ), "")
    if proxy.scheme != "http" or not proxy.hostname or _is_spared(address.rpartition(":")[0].strip("[]"), spared):
        return None
    return f"{place} (of {variable})"


def _is_spared(host: str, entries: str) -> bool:
    for entry in filter(None, (part.strip() for part in entries.split(","))):
        if host.lower().endswith(entry.lower()):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # a name, or a network of the other version of IP
            continue
    return False
