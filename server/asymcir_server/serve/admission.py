"""Admission: the one place that decides whether a request is taken or turned away."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from asymcir_server.errors import OverloadedError, UnavailableError

RETRY_AFTER_MS = 100
SHUTTING_DOWN = "the server is shutting down: ask another one, or again in a moment"


class Admission:
    """Bounds how many requests are in flight, computed or waiting.

    A request above `max_in_flight` is turned away at once: under overload a quick refusal with a retry hint serves
    everyone better than a queue that only grows.

    Args:
        max_in_flight: requests computed or waiting.
    """

    def __init__(self, *, max_in_flight: int) -> None:
        """Start closed to nobody."""
        self._lock = threading.Condition()
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._draining = False

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Let one request in.

        Raises:
            UnavailableError: the server drains.
            OverloadedError: too many requests are in flight.
        """
        with self._lock:
            self.check_room()
            self._in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

    def check_room(self) -> None:
        """Refuse a request that cannot be let in now, without letting one in; costs next to nothing.

        Raises:
            UnavailableError: the server drains.
            OverloadedError: too many requests are in flight.
        """
        if self._draining:
            raise UnavailableError(SHUTTING_DOWN)
        if self._in_flight >= self._max_in_flight:
            raise OverloadedError(
                f"{self._in_flight} requests are in flight, the limit: try again in {RETRY_AFTER_MS} ms",
                retry_after_ms=RETRY_AFTER_MS,
            )

    @property
    def in_flight(self) -> int:
        """Requests computed or waiting now."""
        return self._in_flight

    @property
    def draining(self) -> bool:
        """Whether new requests are turned away."""
        return self._draining

    def drain(self) -> None:
        """Turn new requests away from now on; those in flight go on to their end."""
        with self._lock:
            self._draining = True

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait for the requests in flight to end; False when the time ran out before."""
        with self._lock:
            return self._lock.wait_for(lambda: self._in_flight == 0, timeout_s)
