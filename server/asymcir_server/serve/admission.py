"""Admission: the one place that decides whether a request is taken or turned away."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from asymcir_server.errors import OverloadedError, UnavailableError
from asymcir_server.serve.security.access import current_caller

RETRY_AFTER_MS = 100
ACTIVE_S = 2.0
"""A caller who asked within that time has a share of the room."""

SHUTTING_DOWN = "the server is shutting down: ask another one, or again in a moment"


class Admission:
    """Bounds how many requests are in flight, computed or waiting.

    A request above `max_in_flight` is turned away at once: under overload a quick refusal with a retry hint serves
    everyone better than a queue that only grows. Once half of the room is taken, a caller with a key may hold no more
    than an equal share of it, so that one who sends much leaves room for the others.

    Args:
        max_in_flight: requests computed or waiting.
        now: a clock that never goes back, seconds.
    """

    def __init__(self, *, max_in_flight: int, now: Callable[[], float] = time.monotonic) -> None:
        """Start closed to nobody."""
        self._lock = threading.Condition()
        self._max_in_flight, self._now = max_in_flight, now
        self._in_flight = 0
        self._draining = False
        self._held: dict[str, int] = {}  # by the id of a key
        self._asked_s: dict[str, float] = {}  # when a key's holder asked last
        self._forgot_s = 0.0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Let one request in.

        Raises:
            UnavailableError: the server drains.
            OverloadedError: too many requests are in flight.
        """
        caller = current_caller.get().id
        with self._lock:
            self.check_room()
            self._in_flight += 1
            self._hold(caller, 1)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1
                self._hold(caller, -1)
                self._lock.notify_all()

    def check_room(self) -> None:
        """Refuse a request that cannot be let in now, without letting one in; costs next to nothing.

        Raises:
            UnavailableError: the server drains.
            OverloadedError: too many requests are in flight.
        """
        if self._draining:
            raise UnavailableError(SHUTTING_DOWN)
        caller = current_caller.get().id
        share = self._share(caller) if caller else self._max_in_flight
        if self._in_flight >= self._max_in_flight:
            raise OverloadedError(
                f"{self._in_flight} requests are in flight, the limit: try again in {RETRY_AFTER_MS} ms",
                retry_after_ms=RETRY_AFTER_MS,
            )
        held = self._held.get(caller, 0)
        if held >= share and 2 * self._in_flight >= self._max_in_flight:
            raise OverloadedError(
                f"{held} requests of this key are in flight, its share: try again in {RETRY_AFTER_MS} ms",
                retry_after_ms=RETRY_AFTER_MS,
            )

    def _share(self, caller: str) -> int:
        """Return how many requests a caller may hold when there is little room, and remember that it asked."""
        now_s = self._now()
        with self._lock:
            self._asked_s[caller] = now_s
            if now_s - self._forgot_s > ACTIVE_S / 4:
                self._forgot_s = now_s
                self._asked_s = {key: at_s for key, at_s in self._asked_s.items() if now_s - at_s < ACTIVE_S}
            return max(1, self._max_in_flight // len(self._asked_s))

    def _hold(self, caller: str, change: int) -> None:
        if caller:
            self._held[caller] = self._held.get(caller, 0) + change
            if not self._held[caller]:
                del self._held[caller]

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
