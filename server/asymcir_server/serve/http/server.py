"""uvicorn in a thread of the server's process."""

import asyncio
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from asymcir_server.errors import ListenError

_BACKLOG = 512
_CLOSE_S = 5.0
_log = logging.getLogger(__name__)


class HttpServer:
    """Serves an ASGI app on a socket that listens already.

    Args:
        app: what answers.
        listening: the socket; closed by `stop`.
        pool: the threads that the app answers in; ended by `stop`.
        receive_timeout_s: for the head of a request, from the connection's begin or the last answer's first byte on.
        idle_timeout_s: for a connection without a request.
        max_connections: open at a time.
    """

    def __init__(
        self,
        app: ASGIApp,
        listening: socket.socket,
        pool: ThreadPoolExecutor,
        *,
        receive_timeout_s: float,
        idle_timeout_s: float,
        max_connections: int,
        tls: Any = None,
    ) -> None:
        """Prepare; nothing is answered yet."""
        self._socket, self._pool = listening, pool
        config = uvicorn.Config(
            app,
            http=_bounded_protocol(receive_timeout_s),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=max_connections,
            timeout_keep_alive=max(1, round(idle_timeout_s)),
            timeout_graceful_shutdown=round(_CLOSE_S),
            h11_max_incomplete_event_size=64 * 1024,
        )
        config.load()
        config.ssl = tls
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Answer from now on.

        Raises:
            ListenError: the loop ended before it began.
        """
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ListenError("the HTTP face did not start: the log says why")
            time.sleep(0.002)

    def stop(self) -> None:
        """Let answers under way end, at most five seconds, and close."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(2 * _CLOSE_S)
        self._socket.close()
        self._pool.shutdown(wait=False)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except Exception:
            _log.exception("the HTTP face ended")


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens, with errors of the operating system as they are."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


def _bounded_protocol(receive_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which closes a connection whose next request does not arrive in time.

    uvicorn bounds connections that wait between requests only: one that sends a byte now and then would stay for ever.
    """

    class BoundedProtocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            answered = self.cycle is None or self.cycle.response_complete
            if answered and self._head_timer is None:
                self._await_head()
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._forget_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(receive_timeout_s, self.transport.abort)

        def _forget_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return BoundedProtocol
