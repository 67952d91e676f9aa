"""The servicers of the gRPC face called by Connect: the same code answers on both, with the same status codes."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, NoReturn

import grpc
from asymcir_common.errors import RETRY_AFTER_KEY
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import Endpoint
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from asymcir_server.errors import ServerError
from asymcir_server.serve.operations import ServerMetrics
from asymcir_server.serve.rpc.context import CallContext, Metadata
from asymcir_server.serve.security.access import AUTHORIZATION, Access, current_caller
from asymcir_server.serve.status import to_status

_CODES = {status: Code[status.name.replace("CANCELLED", "CANCELED")] for status in grpc.StatusCode if status.value[0]}
_TYPES = {
    (False, False): StreamType.UNARY,
    (True, False): StreamType.CLIENT_STREAM,
    (False, True): StreamType.SERVER_STREAM,
    (True, True): StreamType.BIDI_STREAM,
}
_END = object()


class HttpCallContext(CallContext):
    """What a servicer asks of a call, for a call that came over HTTP."""

    def __init__(self, context: RequestContext[Any, Any]) -> None:
        """Wrap the context of a Connect call."""
        super().__init__()
        self._context = context

    def time_remaining(self) -> float | None:  # type: ignore[override]  # as gRPC's own does
        """What is left of the caller's deadline, seconds; None without one."""
        left_ms = self._context.timeout_ms
        return None if left_ms is None else max(0.0, left_ms / 1000.0)

    def invocation_metadata(self) -> Metadata:
        """The request's headers."""
        return tuple(self._context.request_headers.allitems())

    def peer(self) -> str:
        """Who calls, as address:port."""
        return self._context.client_address or ""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with an error."""
        self.send_trailing_metadata()
        raise ConnectError(_CODES[code], details)

    def send_trailing_metadata(self) -> None:
        """Hand them to Connect; a retry hint also becomes HTTP's own header, in whole seconds."""
        for key, value in self._trailing:
            self._context.response_trailers.add(key, str(value))
            if key == RETRY_AFTER_KEY:
                self._context.response_headers["retry-after"] = str(math.ceil(int(value) / 1000.0))


class CheckCaller:
    """Checks who calls before the request's body is read; an interceptor of Connect."""

    def __init__(self, access: Access, metrics: ServerMetrics) -> None:
        """Prepare."""
        self._access, self._metrics = access, metrics

    async def on_start(self, context: RequestContext[Any, Any]) -> None:
        """Refuse a caller who may not call this."""
        try:
            sent = context.request_headers.get(AUTHORIZATION)
            current_caller.set(self._access.check_service(context.method.service_name, sent))
        except ServerError as exc:
            status = to_status(exc)
            with self._metrics.observe("http", context.method.name) as refused:
                refused.code = status.code.name
            adapted = HttpCallContext(context)
            adapted.set_trailing_metadata(status.trailing_metadata)
            adapted.abort(status.code, status.message)

    async def on_end(self, token: None, context: RequestContext[Any, Any], error: Exception | None) -> None:
        """Nothing is left to do."""


def make_endpoints(service: ServiceDescriptor, servicer: Any, pool: Executor, metrics: ServerMetrics) -> dict[str, Any]:
    """Make a Connect endpoint of every method of a service.

    Args:
        service: its descriptor.
        servicer: answers its methods, in threads.
        pool: the threads.
        metrics: counts the calls.

    Returns:
        URL path -> endpoint.
    """
    return {
        f"/{service.full_name}/{method.name}": _make_endpoint(method, getattr(servicer, method.name), pool, metrics)
        for method in service.methods
    }


def _make_endpoint(method: MethodDescriptor, call: Callable[..., Any], pool: Executor, metrics: ServerMetrics) -> Any:
    kind = _TYPES[method.client_streaming, method.server_streaming]
    info: MethodInfo[Any, Any] = MethodInfo(
        name=method.name,
        service_name=method.containing_service.full_name,
        input=message_factory.GetMessageClass(method.input_type),
        output=message_factory.GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )

    @contextmanager
    def answering(context: RequestContext[Any, Any]) -> Iterator[HttpCallContext]:
        """Count a call, and end it."""
        adapted = HttpCallContext(context)
        with metrics.observe("http", method.name) as counted:
            try:
                yield adapted
                adapted.send_trailing_metadata()
            except ConnectError as exc:
                counted.code = exc.code.name.replace("CANCELED", "CANCELLED")
                raise
            except (asyncio.CancelledError, GeneratorExit):
                counted.code = grpc.StatusCode.CANCELLED.name
                raise
            finally:
                adapted.end()

    async def one(request: Any, context: RequestContext[Any, Any]) -> Any:
        """Answer with one message."""
        loop = asyncio.get_running_loop()
        if method.client_streaming:
            request = _iterate(request, loop)
        with answering(context) as adapted:
            return await loop.run_in_executor(pool, copy_context().run, _run, call, request, adapted)

    async def many(request: Any, context: RequestContext[Any, Any]) -> AsyncIterator[Any]:
        """Answer with a stream."""
        loop = asyncio.get_running_loop()
        if method.client_streaming:
            request = _iterate(request, loop)
        with answering(context) as adapted:
            held = copy_context()
            answers = await loop.run_in_executor(pool, held.run, _run, call, request, adapted)
            while (answer := await loop.run_in_executor(pool, held.run, _run, next, answers, _END)) is not _END:
                yield answer

    if kind is StreamType.UNARY:
        return Endpoint.unary(info, one)
    if kind is StreamType.CLIENT_STREAM:
        return Endpoint.client_stream(info, one)
    if kind is StreamType.SERVER_STREAM:
        return Endpoint.server_stream(info, many)
    return Endpoint.bidi_stream(info, many)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ConnectError:
        raise
    except Exception as exc:  # what a servicer did not map itself
        status = to_status(exc)
        raise ConnectError(_CODES[status.code], status.message) from exc


def _iterate(requests: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """Read a stream of the loop from a thread."""

    async def read() -> Any:
        return await anext(requests, _END)

    while (request := asyncio.run_coroutine_threadsafe(read(), loop).result()) is not _END:
        yield request
