"""gRPC status codes to errors that say what to do: the one place where the client knows them."""

import grpc
from asymcir_common.errors import RETRY_AFTER_KEY
from google.protobuf.message import Message

from asymcir_edge.errors import (
    AccessDeniedError,
    RequestRefusedError,
    ServerError,
    ServerFailedError,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
    SpaceMismatchError,
)
from asymcir_edge.remote.channels import find_proxy

# gRPC core's words for a connection that was never made, for a host name that is none, and for an answer above 4 MB.
_NOT_CONNECTED = ("failed to connect", "dns resolution", "name resolution", "connection refused", "address lookup")
_TLS_FAILED = ("ssl", "handshake", "certificate", "peer name", "hostname verification")
_TOO_LARGE = "received message larger than max"
# gRPC's words, and those of our server, where it is the request that is larger than the server takes.
_TOO_LARGE_REQUEST = ("server: received message larger than max", "a message may have")
_SHORTEN = {
    "excluded_ids": "exclude fewer ids",
    "filter": "shorten the filter",
    "modifier": "shorten the typed change",
    "image": "send a smaller picture",
    "metadata_json": "send less metadata",
    "ids": "send fewer ids in a call",
    "updates": "send fewer updates in a call",
}


def to_server_error(
    exc: grpc.RpcError, *, address: str, timeout_s: float, request: Message | None = None
) -> ServerError:
    """Turn a failed call into one of our errors.

    Args:
        exc: as a gRPC stub raises it.
        address: of the server.
        timeout_s: that the call was given.
        request: what was sent, where that was one message.

    Returns:
        The error to raise, its message one line.
    """
    status: grpc.StatusCode = exc.code()
    details = " ".join((exc.details() or "").split()) or "it gave no reason"
    retry_after_s = _read_retry_after(exc)
    hint = f"; try again in {retry_after_s:g} s" if retry_after_s is not None else ""
    proxy = find_proxy(address)
    through = "" if proxy is None else f"; it was asked through the proxy {proxy}"
    if status is grpc.StatusCode.UNAVAILABLE:
        if any(words in details.lower() for words in _TLS_FAILED):
            return ServerUnavailableError(
                f"no TLS connection with {address}: its certificate is not one of the CA's or is for another name, or "
                f"one side speaks plain text ({details})"
            )
        if proxy is not None and any(words in details.lower() for words in (*_NOT_CONNECTED, "proxy")):
            return ServerUnavailableError(
                f"no answer of {address} through the proxy {proxy} ({details}): check that proxy, or set no_proxy to "
                "reach the server without it"
            )
        if any(words in details.lower() for words in _NOT_CONNECTED):
            return ServerUnavailableError(
                f"no server answers at {address}: start one with `asymcir serve`, or check the address"
            )
        return ServerUnavailableError(
            f"the server at {address} cannot answer now ({details}){hint or '; try again in a moment'}{through}",
            retry_after_s=retry_after_s,
        )
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServerTimeoutError(
            f"the server at {address} did not answer within {timeout_s:g} s: try again, or allow more time{through}"
        )
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and any(words in details.lower() for words in _TOO_LARGE_REQUEST):
        return RequestRefusedError(
            f"the request is larger than {address} takes ({details}){_describe_largest(request)}"
        )
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details.lower():
        return RequestRefusedError(
            f"the answer of {address} is larger than gRPC takes ({details}): "
            "ask for fewer hits, or for hits without metadata"
        )
    if status in _REFUSALS:
        kind, message = _REFUSALS[status]
        return kind(f"{address} {message}: {details}{hint}", retry_after_s=retry_after_s)
    return ServerFailedError(f"the server at {address} failed ({status.name}): {details}")


_REFUSALS: dict[grpc.StatusCode, tuple[type[ServerError], str]] = {
    grpc.StatusCode.CANCELLED: (ServerUnavailableError, "cancelled the call, as a server that stops does"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ServerOverloadedError, "is at its limit"),
    grpc.StatusCode.FAILED_PRECONDITION: (SpaceMismatchError, "does not fit this device"),
    grpc.StatusCode.INVALID_ARGUMENT: (RequestRefusedError, "refused the request"),
    grpc.StatusCode.ABORTED: (RequestRefusedError, "could not change the gallery"),
    grpc.StatusCode.OUT_OF_RANGE: (RequestRefusedError, "refused the request"),
    grpc.StatusCode.NOT_FOUND: (RequestRefusedError, "does not have what was asked for"),
    grpc.StatusCode.PERMISSION_DENIED: (AccessDeniedError, "does not allow this"),
    grpc.StatusCode.UNAUTHENTICATED: (AccessDeniedError, "wants to know who asks"),
    grpc.StatusCode.UNIMPLEMENTED: (RequestRefusedError, "is no asymcir server, or one of another version"),
}


def _read_retry_after(exc: grpc.RpcError) -> float | None:
    for entry in exc.trailing_metadata() or ():
        if entry.key == RETRY_AFTER_KEY:
            try:
                wait_ms = int(entry.value)
            except ValueError:
                return None
            return wait_ms / 1000.0 if wait_ms >= 0 else None  # negative: do not try again
    return None


def _describe_largest(request: Message | None) -> str:
    """Say which field of a request takes most of it, and what to do about that."""
    if request is None:
        return f": {_SHORTEN['image']}, or {_SHORTEN['metadata_json']}"
    sizes = dict[str, int]()
    for field, value in request.ListFields():
        part = type(request)(**{field.name: value})
        sizes[field.name] = part.ByteSize()
    name = max(sizes, key=sizes.__getitem__, default="")
    return f": {name} takes {sizes.get(name, 0)} bytes of it, {_SHORTEN.get(name, 'send less')}"
