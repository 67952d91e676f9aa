"""What every call of our services passes on the gRPC face, before the service sees it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc

from asymcir_server.errors import MessageSizeError, RequestError, ServerError
from asymcir_server.serve.security.access import AUTHORIZATION, Access, current_caller
from asymcir_server.serve.status import to_status

_OURS = "/asymcir."

Handler = Any  # grpc.RpcMethodHandler, which has type parameters in the stubs only
Behavior = Callable[[Any, grpc.ServicerContext], Any]


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # a parameter of the stubs only
    """Checks who calls, and decodes: bytes that are no message are the caller's fault (INVALID_ARGUMENT), as over HTTP.

    gRPC itself would answer INTERNAL. Each service has a largest message: gRPC has one for the whole server.
    """

    def __init__(self, access: Access, max_bytes: Mapping[str, int]) -> None:
        """Prepare.

        Args:
            access: decides who may call.
            max_bytes: full name of a service -> its largest message.
        """
        self._access, self._max_bytes = access, max_bytes

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Handler], details: grpc.HandlerCallDetails
    ) -> Handler:
        """Put the checks before a method; see gRPC."""
        handler = continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        service = details.method.split("/")[1]
        decode = _decoder(handler.request_deserializer, self._max_bytes[service])

        def prepare(request: Any, context: grpc.ServicerContext) -> Any:
            """Check the caller before anything is decoded."""
            try:
                sent = dict(context.invocation_metadata()).get(AUTHORIZATION)
                current_caller.set(self._access.check_service(service, None if sent is None else str(sent)))
                return decode(request)
            except ServerError as exc:
                status = to_status(exc)
                context.abort(status.code, status.message)

        for name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behavior = getattr(handler, name)
            if behavior is not None:
                make = getattr(grpc, f"{name}_rpc_method_handler")
                wrapped = _guard_stream(behavior, prepare) if name.endswith("stream") else _guard(behavior, prepare)
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


def _guard(behavior: Behavior, prepare: Behavior) -> Behavior:
    def guarded(request: Any, context: grpc.ServicerContext) -> Any:
        return behavior(prepare(request, context), context)

    return guarded


def _guard_stream(behavior: Behavior, prepare: Behavior) -> Behavior:
    def guarded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from behavior(prepare(request, context), context)

    return guarded
