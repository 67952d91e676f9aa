"""gRPC status codes to errors that say what to do: the one place where the client knows them."""

import grpc
from asymcir_common.errors import RETRY_AFTER_KEY

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

# gRPC core's words for a connection that was never made, for a host name that is none, and for an answer above 4 MB.
_NOT_CONNECTED = ("failed to connect", "dns resolution", "name resolution", "connection refused", "address lookup")
_TLS_FAILED = ("ssl", "handshake", "certificate", "peer name", "hostname verification")
_TOO_LARGE_HERE = "a message may have"  # the server's words for a request above its limit
_TOO_LARGE = "received message larger than max"


def to_server_error(exc: grpc.RpcError, *, address: str, timeout_s: float) -> ServerError:
    """Turn a failed call into one of our errors.

    Args:
        exc: as a gRPC stub raises it.
        address: of the server.
        timeout_s: that the call was given.

    Returns:
        The error to raise, its message one line.
    """
    status: grpc.StatusCode = exc.code()
    details = " ".join((exc.details() or "").split()) or "it gave no reason"
    retry_after_s = _read_retry_after(exc)
    hint = f"; try again in {retry_after_s:g} s" if retry_after_s is not None else ""
    if status is grpc.StatusCode.UNAVAILABLE:
        if any(words in details.lower() for words in _TLS_FAILED):
            return ServerUnavailableError(
                f"no TLS connection with {address}: its certificate is not one of the CA's or is for another name, or "
                f"one side speaks plain text ({details})"
            )
        if any(words in details.lower() for words in _NOT_CONNECTED):
            return ServerUnavailableError(
                f"no server answers at {address}: start one with `asymcir serve`, or check the address"
            )
        return ServerUnavailableError(
            f"the server at {address} cannot answer now ({details}){hint or '; try again in a moment'}",
            retry_after_s=retry_after_s,
        )
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServerTimeoutError(
            f"the server at {address} did not answer within {timeout_s:g} s: try again, or allow more time"
        )
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and (_TOO_LARGE in details.lower() or _TOO_LARGE_HERE in details):
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
