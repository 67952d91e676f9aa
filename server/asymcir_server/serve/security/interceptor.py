"""What every call of our services passes on the gRPC face, before the service sees it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from asymcir_server.errors import MessageSizeError, RequestError, ServerError
from asymcir_server.serve.status import to_status

_OURS = "/asymcir."

Handler = Any  # grpc.RpcMethodHandler, which has type parameters in the stubs only
Behavior = Callable[[Any, grpc.ServicerContext], Any]


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # a parameter of the stubs only
    """Decodes requests, so that bytes that are no message are the caller's fault (INVALID_ARGUMENT), as over HTTP.

    gRPC itself would answer INTERNAL. Each service has a largest message: gRPC has one for the whole server.
    """

    def __init__(self, max_bytes: Mapping[str, int]) -> None:
        """Prepare.

        Args:
            max_bytes: full name of a service -> its largest message.
        """
        self._max_bytes = max_bytes

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Handler], details: grpc.HandlerCallDetails
    ) -> Handler:
        """Put the checks before a method; see gRPC."""
        handler = continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        decode = _decoder(handler.request_deserializer, self._max_bytes[details.method.split("/")[1]])
        for name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behavior = getattr(handler, name)
            if behavior is not None:
                make = getattr(grpc, f"{name}_rpc_method_handler")
                wrapped = _guard_stream(behavior, decode) if name.endswith("stream") else _guard(behavior, decode)
                return make(wrapped, None, handler.response_serializer)
        return handler


def _decoder(deserialize: Any, max_bytes: int) -> Callable[[Any], Any]:
    def decode(request: Any) -> Any:
        if isinstance(request, bytes):
            if len(request) > max_bytes:
                raise MessageSizeError(f"the request has {len(request)} bytes, a message may have {max_bytes}")
            try:
                return deserialize(request)
            except Exception as exc:  # protobuf's own, of several kinds
                raise RequestError(f"the request is no message of this method: {exc}") from exc
        return map(decode, request)

    return decode


def _guard(behavior: Behavior, decode: Callable[[Any], Any]) -> Behavior:
    def guarded(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            decoded = decode(request)
        except ServerError as exc:
            _abort(exc, context)
        return behavior(decoded, context)

    return guarded


def _guard_stream(behavior: Behavior, decode: Callable[[Any], Any]) -> Behavior:
    def guarded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            decoded = decode(request)
        except ServerError as exc:
            _abort(exc, context)
        yield from behavior(decoded, context)

    return guarded


def _abort(error: Exception, context: grpc.ServicerContext) -> None:
    status = to_status(error)
    context.abort(status.code, status.message)
