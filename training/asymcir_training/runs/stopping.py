"""How a run ends before its last step: a signal or NaN, in any of its processes, stops them all at the same step."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import torch

from asymcir_training.errors import TrainingError

if TYPE_CHECKING:
    from asymcir_training.engine.processes import Processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_SIGNAL_S = 1.0


class Interrupted(TrainingError):
    """A signal stopped the run; its state is kept, and the same command goes on."""


class Stop:
    """Whether a signal asked this process to stop.

    Attributes:
        signal_number: of the first one; 0 before any.
    """

    def __init__(self) -> None:
        self.signal_number = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """What the processes have to say after a step.

    Attributes:
        signal_number: that any of them caught; 0 for none.
        bad_ranks: whose figures were NaN or infinite.
        waited_s: the longest that any of them waited for data: the others waited for it in turn.
    """

    signal_number: int
    bad_ranks: tuple[int, ...]
    waited_s: float


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of ending at once, so that a step can be finished and kept.

    The same signal more than a second later does what it did before: a person who presses Ctrl-C again means now, while
    a terminal and a launcher may both pass on the first one. Outside the main thread nothing can be caught.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    caught_at = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal caught_at
        if not stop.signal_number:
            stop.signal_number, caught_at = number, time.monotonic()
        elif time.monotonic() - caught_at > _SAME_SIGNAL_S:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    # None stands for a handler that was not set from Python.
    before = {int(number): signal.signal(number, note) or signal.SIG_DFL for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exchange_signs(processes: "Processes | None", *, signal_number: int, bad: bool, waited_s: float) -> Signs:
    """Tell the other processes of this one's signs, and learn theirs.

    Twelve bytes each are gathered after every step: sharing what the main process knows would not do, for the signal or
    the NaN may have reached another one only, and they must all stop at the same step or wait for each other for ever.
    """
    if processes is None or processes.world == 1:
        return Signs(signal_number=signal_number, bad_ranks=(0,) if bad else (), waited_s=waited_s)
    mine = torch.tensor([[signal_number, bad, waited_s]], dtype=torch.float32, device=processes.device)
    signs = processes.gather(mine).tolist()  # [world, 3]
    return Signs(
        signal_number=int(max(row[0] for row in signs)),
        bad_ranks=tuple(rank for rank, row in enumerate(signs) if row[1]),
        waited_s=max(row[2] for row in signs),
    )
