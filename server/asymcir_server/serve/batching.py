"""Batches for the text encoder: requests that arrive while it runs are encoded together by its next run.

One thread runs the encoder. When it is idle a request is taken at once; nothing waits for company. A batch is bounded
by prompts, and by what the runs before say it will cost, so that one large batch does not hold up the requests behind.
Callers with keys take turns.

Notation: T rows of a prompt, D word-embedding width, E joint-embedding width.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from asymcir_common.arguments import MAX_TEXT_BATCH
from numpy.typing import NDArray

from asymcir_server.encode.text_encoder import UNUSABLE, TextEncoder
from asymcir_server.encode.vectors import l2_normalize, usable_rows
from asymcir_server.errors import DeadlineError, RequestError, UnavailableError
from asymcir_server.serve.admission import SHUTTING_DOWN
from asymcir_server.serve.security.access import current_caller
from asymcir_server.serve.turns import TurnQueue

TARGET_RUN_S = 0.1
"""A run takes about as long at most, if it has more than one prompt."""

_SMOOTHING = 0.2
LATE = "the deadline passed while the request waited for its turn"


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """An encoded prompt.

    Attributes:
        embedding: [E], L2-normalised.
        queue_ms: until its run began.
        run_ms: of the run.
        batch: prompts of the run.
    """

    embedding: NDArray[np.float32]
    queue_ms: float
    run_ms: float
    batch: int


NOTHING_ENCODED = Encoded(embedding=np.empty(0, np.float32), queue_ms=0.0, run_ms=0.0, batch=0)
"""Of a search that needs no run."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Waiting:
    prompt: NDArray[np.float32]
    arrived_s: float
    deadline_s: float
    gone: Callable[[], bool]
    done: threading.Event = field(default_factory=threading.Event)
    result: Encoded | Exception | None = None

    def finish(self, result: "Encoded | Exception") -> None:
        self.result = result
        self.done.set()


class TextBatcher:
    """Encodes prompts of many requests in few runs. Safe to share between threads.

    Args:
        encoder: runs them.
        max_items: prompts of a run, at most.
        target_run_s: see TARGET_RUN_S.
    """

    def __init__(
        self, encoder: TextEncoder, *, max_items: int = MAX_TEXT_BATCH, target_run_s: float = TARGET_RUN_S
    ) -> None:
        self._encoder = encoder
        self._max_items = max_items
        self._target_run_s = target_run_s
        self._seconds_per_row = 0.0
        self._queue = TurnQueue[_Waiting]()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="text-encoder", daemon=True)
        self._thread.start()

    def encode(
        self,
        prompt: NDArray[np.float32],
        *,
        timeout_s: float | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> Encoded:
        """Encode one prompt, together with those that wait beside it.

        Args:
            prompt: [T, D], from the composer.
            timeout_s: what is left of the caller's deadline; None: no deadline.
            gone: whether the caller does not wait any more; asked before the prompt is run.

        Raises:
            RequestError: the prompt gives no usable embedding.
            DeadlineError: the deadline passed, or the caller is gone.
            UnavailableError: the batcher is closed.
            BundleError: the text tower fails.
        """
        now_s, caller = time.monotonic(), current_caller.get().id
        patience_s = None if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        waiting = _Waiting(
            prompt=prompt,
            arrived_s=now_s,
            deadline_s=float("inf") if patience_s is None else now_s + patience_s,
            gone=gone or (lambda: False),
        )
        with self._changed:
            if self._closed:
                raise UnavailableError(SHUTTING_DOWN)
            self._queue.append(caller, waiting)
            self._changed.notify()
        if not waiting.done.wait(patience_s):
            with self._changed, suppress(ValueError):  # it may be in a run already
                self._queue.remove(caller, waiting)
            raise DeadlineError(LATE)
        if isinstance(waiting.result, Encoded):
            return waiting.result
        assert waiting.result is not None
        raise waiting.result

    @property
    def queue_depth(self) -> int:
        """Prompts that wait for a run."""
        return len(self._queue)

    def close(self) -> None:
        """Let the run that is under way end, and turn away what waits."""
        with self._changed:
            self._closed = True
            left, self._queue = self._queue, TurnQueue()
            self._changed.notify()
        for waiting in left:
            waiting.finish(UnavailableError(SHUTTING_DOWN))
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            for alone in self._encode(batch):  # so that nobody's query fails by another's prompt
                if not _leaves(alone):
                    self._encode([alone])

    def _encode(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Run prompts together; returns those of a run of several that have to be run again, each alone."""
        started_s = time.monotonic()
        try:
            features = self._encoder.encode_prompts([waiting.prompt for waiting in batch])  # [b, E]
        except Exception as exc:  # each request maps it to its status
            if len(batch) > 1:
                return batch
            batch[0].finish(exc)
            return []
        run_s = time.monotonic() - started_s
        self._learn(run_s, len(batch) * max(len(waiting.prompt) for waiting in batch))
        usable = usable_rows(features)
        embeddings = l2_normalize(features)
        again: list[_Waiting] = []
        for row, waiting in enumerate(batch):
            if usable[row]:
                waiting.finish(
                    Encoded(
                        embedding=embeddings[row],
                        queue_ms=(started_s - waiting.arrived_s) * 1000.0,
                        run_ms=run_s * 1000.0,
                        batch=len(batch),
                    )
                )
            elif len(batch) > 1:
                again.append(waiting)
            else:
                waiting.finish(RequestError(UNUSABLE))
        return again

    def _take(self) -> list[_Waiting]:
        """Wait for prompts and take those of the next run, callers in turn; none when the batcher is closed."""
        batch: list[_Waiting] = []
        while not batch:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return []
                longest = 0
                while self._queue and len(batch) < self._max_items:
                    waiting = self._queue.peek()
                    if _leaves(waiting):
                        self._queue.popleft()
                        continue
                    longest = max(longest, len(waiting.prompt))  # shorter ones are padded to it
                    if batch and (len(batch) + 1) * longest * self._seconds_per_row > self._target_run_s:
                        break
                    batch.append(self._queue.popleft())
        return batch

    def _learn(self, run_s: float, rows: int) -> None:
        """Remember what a row costs, as an average that forgets."""
        cost = run_s / rows
        known = self._seconds_per_row
        self._seconds_per_row = cost if known == 0.0 else known + _SMOOTHING * (cost - known)


def _leaves(waiting: _Waiting) -> bool:
    """Tell a request off whose deadline passed, or whose caller is gone."""
    if waiting.deadline_s > time.monotonic() and not waiting.gone():
        return False
    waiting.finish(DeadlineError(LATE))
    return True
