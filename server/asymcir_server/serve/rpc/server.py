"""gRPC's asyncio server in a thread of the server's process."""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

_PENDING = 10_000
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class GrpcServer:
    """Answers gRPC calls, with the standard health and reflection services.

    Args:
        handlers: of the services.
        services: their names.
        max_receive_bytes, max_send_bytes: of a message.
    """

    def __init__(
        self,
        handlers: Sequence[Any],
        services: Sequence[str],
        *,
        max_receive_bytes: int,
        max_send_bytes: int,
    ) -> None:
        """Make the server; nothing listens yet, and health says NOT_SERVING."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="grpc", daemon=True)
        self._thread.start()
        self._services = tuple(services)
        self._server, self._health = self._run(self._make(handlers, max_receive_bytes, max_send_bytes))
        self.set_serving(False)

    def bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Listen on an address: returns the port, 0 where that fails.

        Raises:
            RuntimeError: it fails.
        """

        async def bind() -> int:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)

        return self._run(bind())

    def start(self) -> None:
        """Answer from now on."""
        self._run(self._server.start())

    def set_serving(self, serving: bool) -> None:
        """Say whether it is healthy."""
        status = health_pb2.HealthCheckResponse
        self._run(self._set_health(status.SERVING if serving else status.NOT_SERVING))

    def enter_graceful_shutdown(self) -> None:
        """Say NOT_SERVING from now on."""
        self._run(self._health.enter_graceful_shutdown())

    def stop(self, grace_s: float) -> None:
        """Let calls under way end, `grace_s` at most, and close."""
        self._run(self._server.stop(grace_s))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _make(
        self, handlers: Sequence[Any], max_receive_bytes: int, max_send_bytes: int
    ) -> tuple[grpc.aio.Server, Any]:
        server = grpc.aio.server(
            handlers=handlers,
            options=[
                # Without this two servers share one port silently and answer in turns.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_receive_bytes),
                ("grpc.max_send_message_length", max_send_bytes),
                # Calls that came and were not looked at yet: above these gRPC ends them without a reason.
                ("grpc.server.max_pending_requests", _PENDING),
                ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING),
                # Phones ping an idle channel to keep it through NATs; by default a server answers that with
                # GOAWAY too_many_pings when they come more often than every five minutes.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        checks = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        names = [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server)
        return server, checks

    async def _set_health(self, status: Any) -> None:
        for name in ("", *self._services[:1]):
            await self._health.set(name, status)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        except Exception:
            _log.exception("the gRPC face ended")
