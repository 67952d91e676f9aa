"""How often each key may call: a bucket of calls for each, which fills at the key's rate."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from asymcir_server.errors import RateLimitError
from asymcir_server.serve.security.keys import Key


@dataclass(slots=True)
class _Bucket:
    rate: float
    calls: float
    filled_s: float


class RateLimits:
    """Counts the calls of keys that have a rate. Safe to share between threads.

    A bucket holds the calls of one second, at least one, so a caller may send them at once.

    Args:
        now: a clock that never goes back, seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Start with full buckets."""
        self._now, self._lock = now, threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: Key) -> None:
        """Count a call.

        Raises:
            RateLimitError: the key's calls come faster than its rate; it says when the next may come.
        """
        if key.rate is None:
            return
        now_s, most = self._now(), max(1.0, key.rate)
        with self._lock:
            bucket = self._buckets.get(key.id)
            if bucket is None or bucket.rate != key.rate:
                bucket = self._buckets[key.id] = _Bucket(rate=key.rate, calls=most, filled_s=now_s)
            bucket.calls = min(most, bucket.calls + (now_s - bucket.filled_s) * key.rate)
            bucket.filled_s = now_s
            if bucket.calls >= 1.0:
                bucket.calls -= 1.0
                return
            wait_ms = math.ceil((1.0 - bucket.calls) / key.rate * 1000.0)
        raise RateLimitError(
            f"the key {key.id} may call {key.rate:g} times a second: try again in {wait_ms} ms", retry_after_ms=wait_ms
        )
