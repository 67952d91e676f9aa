"""The progress line of a build: one line that moves on a terminal, one line every ten seconds elsewhere."""

import time
from collections import deque
from typing import TextIO

_TERMINAL_INTERVAL_S = 0.2
_LOG_INTERVAL_S = 10.0
_WINDOW_S = 30.0
"""The rate is that of this time: pictures that need not be encoded again go by much faster than others."""


class ProgressLine:
    """Writes how far a build is, its rate and the time left.

    Args:
        stream: where to, usually stderr.
    """

    def __init__(self, stream: TextIO) -> None:
        """Start the clock."""
        self._stream = stream
        self._moves = stream.isatty()
        self._interval_s = _TERMINAL_INTERVAL_S if self._moves else _LOG_INTERVAL_S
        self._written_s = time.monotonic()
        self._marks = deque([(self._written_s, 0)])

    def update(self, done: int, total: int, quarantined: int) -> None:
        """Report; writes only when the interval has passed.

        Args:
            done: entries finished, quarantined ones included.
            total: entries that there are.
            quarantined: how many were put aside.
        """
        now_s = time.monotonic()
        if now_s - self._written_s < self._interval_s:
            return
        self._written_s = now_s
        while len(self._marks) > 1 and now_s - self._marks[1][0] > _WINDOW_S:
            self._marks.popleft()
        since_s, before = self._marks[0]
        self._marks.append((now_s, done))
        rate = (done - before) / max(now_s - since_s, 1e-9)
        left_s = (total - done) / rate if rate > 0 else 0.0
        line = f"{done}/{total} pictures, {rate:.0f}/s, {left_s:.0f} s left, {quarantined} quarantined"
        self._stream.write(f"\r{line:<78}" if self._moves else f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Clear the moving line."""
        if self._moves:
            self._stream.write(f"\r{'':<78}\r")
            self._stream.flush()
