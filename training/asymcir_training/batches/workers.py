"""Jobs by number in worker processes, in order: what the scan, the cache and the batches have in common."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from asymcir_common import AsymcirError
from torch.utils.data import DataLoader, Dataset

from asymcir_training.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error on its way to the main process; raised in the worker, torch would wrap its message in a traceback."""

    error: AsymcirError


class _Jobs(Dataset[Any], Generic[T]):
    def __init__(self, job: Callable[[int], T]) -> None:
        self._job = job

    def __getitem__(self, number: int) -> T | _Failure:
        try:
            return self._job(number)
        except AsymcirError as exc:
            return _Failure(exc)


def run_jobs(
    job: Callable[[int], T],
    numbers: Sequence[int],
    *,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[T]:
    """Yield job(number) for each number, in their order.

    Args:
        job: picklable; what it draws must not depend on the process.
        numbers: any sequence, a range too.
        workers: processes beside this one; 0 runs the jobs here, one at a time as they are asked for.
        pin_memory: put tensors where CUDA copies them from while it computes.

    Raises:
        AsymcirError: what a job raised.
        DataError: a worker process ended.
    """
    loader: DataLoader[Any] = DataLoader(
        _Jobs(job),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin_memory,
        # Of the loader's own, as it would draw from the trainer's generator otherwise, and so change the run.
        generator=torch.Generator(),
        worker_init_fn=_leave_interrupts if workers else None,
    )
    results = iter(loader)
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as exc:
            if "DataLoader worker" not in str(exc):
                raise
            raise DataError(
                f"a worker process ended ({str(exc).splitlines()[0]}): memory or /dev/shm may be too small for so many "
                f"workers; ask for fewer than {workers}"
            ) from exc
        if isinstance(result, _Failure):
            raise result.error
        yield result


def _leave_interrupts(_: int) -> None:
    """Leave Ctrl-C, which a terminal sends to workers too, to the trainer, which finishes its step with their help."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
