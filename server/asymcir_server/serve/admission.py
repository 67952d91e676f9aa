"""Admission: the one place that decides whether a request is taken, waits, or is turned away."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from asymcir_server.errors import DeadlineError, OverloadedError, UnavailableError

RETRY_AFTER_MS = 100


class Admission:
    """Bounds how many requests are computed at once and how many may wait.

    A request above `max_in_flight` is turned away at once: under overload a quick refusal with a retry hint serves
    everyone better than a queue that only grows.

    Args:
        concurrency: requests computed at the same time.
        max_in_flight: requests computed or waiting.
    """

    def __init__(self, *, concurrency: int, max_in_flight: int) -> None:
        """Start closed to nobody."""
        self._slots = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Condition()
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._draining = False

    @contextmanager
    def admit(self, timeout_s: float | None) -> Iterator[float]:
        """Hold a slot for one request.

        Args:
            timeout_s: what is left of the caller's deadline; None: no deadline.

        Yields:
            How long the request waited, milliseconds.

        Raises:
            UnavailableError: the server drains.
            OverloadedError: too many requests are in flight.
            DeadlineError: no slot came free in time.
        """
        arrived_s = time.perf_counter()
        with self._lock:
            if self._draining:
                raise UnavailableError("the server is shutting down: ask another one, or again in a moment")
            if self._in_flight >= self._max_in_flight:
                raise OverloadedError(
                    f"{self._in_flight} requests are in flight, the limit: try again in {RETRY_AFTER_MS} ms",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            self._in_flight += 1
        # gRPC gives a call without a deadline some 300 years, more than a lock can wait for.
        patience_s = None if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        try:
            if not self._slots.acquire(timeout=patience_s):
                raise DeadlineError("the deadline passed while the request waited for its turn")
            try:
                yield (time.perf_counter() - arrived_s) * 1000.0
            finally:
                self._slots.release()
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

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
