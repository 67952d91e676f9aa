"""The servicers called by gRPC's asyncio server: a call has a thread only while it is answered.

gRPC's threaded server gives every call a thread before its message has come, so a few hundred callers who send nothing
keep everyone else waiting for ever. Here a call waits in the loop until its message is there, `receive_timeout_s` at
most. To make that possible every method is received as a stream, of one message where it takes one: on the wire the two
are the same.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from asymcir_server.errors import DeadlineError, MessageSizeError, RequestError
from asymcir_server.serve.operations import ServerMetrics
from asymcir_server.serve.rpc.context import CallContext, Metadata
from asymcir_server.serve.security.access import AUTHORIZATION, Access, current_caller
from asymcir_server.serve.status import to_status


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRules:
    """What every call of a service passes.

    Attributes:
        access: decides who may call.
        max_bytes: the service's largest message; gRPC has one for the whole server.
        receive_timeout_s: for the message of a call that sends one.
        check_room: name of a method -> refuses a call that would be refused anyway, before it is received; runs in the
            loop, so it must not wait.
        metrics: counts the calls.
    """

    access: Access
    max_bytes: int
    receive_timeout_s: float
    metrics: ServerMetrics
    check_room: Mapping[str, Callable[[], None]] = field(default_factory=dict)


class GrpcCallContext(CallContext):
    """What a servicer asks of a call, for a call that came over gRPC."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Wrap the context of the loop's call."""
        super().__init__()
        self._context = context
        loop, remaining_s = asyncio.get_running_loop(), context.time_remaining()
        self._now = loop.time
        self._end_s = None if remaining_s is None else loop.time() + remaining_s

    def time_remaining(self) -> float | None:  # type: ignore[override]  # as gRPC's own does
        """What is left of the caller's deadline, seconds; None without one."""
        return None if self._end_s is None else max(0.0, self._end_s - self._now())

    def invocation_metadata(self) -> Metadata:
        """The request's headers."""
        return tuple(self._context.invocation_metadata() or ())

    def peer(self) -> str:
        """Who calls, as gRPC names it."""
        return self._context.peer()

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with an error."""
        raise _AbortedError(code, details, self._trailing)


class _AbortedError(Exception):
    """Raised by a servicer that ends its call, and told to gRPC by the loop."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        super().__init__(details)
        self.code, self.details, self.trailing = code, details, trailing


def make_handler(service: ServiceDescriptor, servicer: Any, pool: Executor, rules: CallRules) -> grpc.GenericRpcHandler:  # type: ignore[type-arg]
    """Make gRPC's handler of every method of a service.

    Args:
        service: its descriptor.
        servicer: answers its methods, in threads.
        pool: the threads.
        rules: what is checked before.
    """
    methods = {
        method.name: _make_method(method, getattr(servicer, method.name), pool, rules) for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _make_method(method: MethodDescriptor, call: Callable[..., Any], pool: Executor, rules: CallRules) -> Any:
    kind = message_factory.GetMessageClass(method.input_type)
    service, check_room = method.containing_service.full_name, rules.check_room.get(method.name)

    async def begin(requests: AsyncIterator[bytes], adapted: GrpcCallContext) -> Any:
        """Check the caller before anything is received; return the message, or the stream as a thread reads it."""
        sent = dict(adapted.invocation_metadata()).get(AUTHORIZATION)
        current_caller.set(rules.access.check_service(service, None if sent is None else str(sent)))
        if check_room is not None:
            check_room()
        if method.client_streaming:
            return _iterate(requests, kind, rules.max_bytes, asyncio.get_running_loop())
        try:
            async with asyncio.timeout(rules.receive_timeout_s):
                data = await anext(requests, None)
        except TimeoutError as exc:
            raise DeadlineError(f"the request's message did not come within {rules.receive_timeout_s:g} s") from exc
        if data is None:
            raise RequestError("the call ended without a message: expected one")
        return _decode(data, kind, rules.max_bytes)

    @asynccontextmanager
    async def answering(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[GrpcCallContext]:
        """Count a call, tell gRPC of its error, and end it."""
        adapted = GrpcCallContext(context)
        with rules.metrics.observe("grpc", method.name) as counted:
            try:
                yield adapted
                context.set_trailing_metadata(adapted.trailing_metadata())
            except Exception as exc:
                error = _to_abort(exc)
                counted.code = error.code.name
                await context.abort(error.code, error.details, error.trailing)
            except asyncio.CancelledError:
                counted.code = grpc.StatusCode.CANCELLED.name
                raise
            finally:
                adapted.end()

    async def one(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Answer with one message."""
        async with answering(context) as adapted:
            request, loop = await begin(requests, adapted), asyncio.get_running_loop()
            answer: bytes = await loop.run_in_executor(pool, copy_context().run, _answer, call, request, adapted)
        return answer

    async def many(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        """Answer with a stream."""
        async with answering(context) as adapted:
            request, loop = await begin(requests, adapted), asyncio.get_running_loop()
            held = copy_context()
            answers = await loop.run_in_executor(pool, held.run, call, request, adapted)
            while (answer := await loop.run_in_executor(pool, held.run, _next, answers)) is not None:
                yield answer.SerializeToString()

    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(many)
    return grpc.stream_unary_rpc_method_handler(one)


def _answer(call: Callable[..., Message], request: Any, context: GrpcCallContext) -> bytes:
    return call(request, context).SerializeToString()


def _next(answers: Iterator[Message]) -> Message | None:
    return next(answers, None)


def _to_abort(error: Exception) -> _AbortedError:
    """Return how a call ends; what a servicer did not map itself is mapped here."""
    if isinstance(error, _AbortedError):
        return error
    status = to_status(error)
    return _AbortedError(status.code, status.message, status.trailing_metadata)


def _decode(data: bytes, kind: type[Message], max_bytes: int) -> Message:
    """Decode a message: bytes that are none are the caller's fault, where gRPC itself would answer INTERNAL."""
    if len(data) > max_bytes:
        raise MessageSizeError(f"the request has {len(data)} bytes, a message may have {max_bytes}")
    try:
        return kind.FromString(data)
    except Exception as exc:  # protobuf's own, of several kinds
        raise RequestError(f"the request is no message of this method: {exc}") from exc


def _iterate(
    requests: AsyncIterator[bytes], kind: type[Message], max_bytes: int, loop: asyncio.AbstractEventLoop
) -> Iterator[Message]:
    """Read a stream of the loop from a thread."""

    async def read() -> bytes | None:
        return await anext(requests, None)

    while (data := asyncio.run_coroutine_threadsafe(read(), loop).result()) is not None:
        yield _decode(data, kind, max_bytes)
