"""The batches of a run: the same pictures in the same views, whatever the number of processes and workers.

Notation: n pictures kept, b batch over all processes, b_local rows of one process, S picture side.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from asymcir_common import ImageError, Preprocessing
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.batches.views import Augmentation, augment, batch_at
from asymcir_training.batches.workers import run_jobs
from asymcir_training.errors import DataError
from asymcir_training.pictures.sets import PictureSet


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One process's part of the batch of one step.

    Attributes:
        number: the step.
        index: [b_local], this process's rows: positions into `kept`.
        whole: [b], the rows of all processes, in their order.
        pixels: [b_local, 3, S, S], uint8; the augmented view where an augmentation was given.
        waited_s: how long the trainer waited for it.
    """

    number: int
    index: NDArray[np.int64]
    whole: NDArray[np.int64]
    pixels: Tensor
    waited_s: float


def iterate_batches(
    pictures: PictureSet,
    kept: NDArray[np.int64],
    *,
    spec: Preprocessing,
    augmentation: Augmentation | None,
    seed: int,
    batch: int,
    first: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of steps first ... steps - 1.

    The global batch of a step is `batch_at` of that step, process r takes the r-th of its `world` equal parts, and the
    view of a picture follows from seed, step and picture alone.

    Args:
        pictures: where from.
        kept: [n], the numbers of the pictures that can be decoded.
        spec: how pictures come in.
        augmentation: of the views; without it the clean pictures.
        seed: of order and views.
        batch: b, over all processes.
        first: where a resumed run goes on.
        steps: of the whole run.
        rank, world: which process of how many.
        workers: processes that decode and augment; 0: none beside this one.
        pin_memory: put pixels where CUDA copies them from while it computes.

    Raises:
        DataError: a batch that cannot be cut into `world` equal parts, no pictures, or one that can no longer be
            decoded (names its key).
    """
    count = min(batch, len(kept))
    if batch < 1 or not len(kept):
        raise DataError(f"expected a batch of 1 or more of 1 picture or more, got {batch} of {len(kept)}")
    if not 0 <= rank < world:
        raise DataError(f"expected a rank from 0 to {world - 1}, got {rank}")
    if count % world:
        raise DataError(
            f"a batch of {count} cannot be shared equally by {world} processes: take a multiple of {world}"
            + (f" (there are {len(kept)} pictures)" if count < batch else "")
        )
    job = _BatchJob(
        pictures=pictures,
        kept=kept,
        spec=spec,
        augmentation=augmentation,
        seed=seed,
        batch=batch,
        part=slice(rank * count // world, (rank + 1) * count // world),
    )
    return _iterate(job, range(first, steps), workers=workers, pin_memory=pin_memory)


def _iterate(job: "_BatchJob", numbers: range, *, workers: int, pin_memory: bool) -> Iterator[Batch]:
    results = run_jobs(job, numbers, workers=workers, pin_memory=pin_memory)
    for number in numbers:
        asked_s = time.monotonic()
        pixels = next(results)
        waited_s = time.monotonic() - asked_s
        whole = job.choose(number)
        yield Batch(number=number, index=whole[job.part], whole=whole, pixels=pixels, waited_s=waited_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class _BatchJob:
    """Step -> pixels [b_local, 3, S, S] uint8; what workers do."""

    pictures: PictureSet
    kept: NDArray[np.int64]
    spec: Preprocessing
    augmentation: Augmentation | None
    seed: int
    batch: int
    part: slice

    def choose(self, number: int) -> NDArray[np.int64]:
        """Return the rows of all processes: [b]."""
        return batch_at(len(self.kept), self.batch, seed=self.seed, number=number)

    def __call__(self, number: int) -> Tensor:
        rows = self.choose(number)[self.part]
        pixels = torch.empty(len(rows), 3, self.spec.size, self.spec.size, dtype=torch.uint8)
        threads = torch.get_num_threads()
        # A worker has one thread; here as many as there give sums rounded as there, and so the same pixels.
        torch.set_num_threads(1)
        try:
            for place, row in enumerate(rows):
                pixels[place] = self._draw(number, int(self.kept[row]))
        finally:
            torch.set_num_threads(threads)
        return pixels

    def _draw(self, step: int, number: int) -> Tensor:
        try:
            clean = self.pictures.decode(number, self.spec)
        except ImageError as exc:
            raise DataError(
                f"the picture {self.pictures.keys[number]} could be decoded before and no longer can: {exc}; where it "
                "was changed on purpose, remove the scan or cache that lists it as usable"
            ) from exc
        pixels = torch.from_numpy(np.array(clean)).permute(2, 0, 1)  # [3, S, S]
        if self.augmentation is None:
            return pixels
        state = np.random.SeedSequence((self.seed, step, number)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state))
        return augment(pixels[None].float(), self.augmentation, generator)[0].round().to(torch.uint8)
