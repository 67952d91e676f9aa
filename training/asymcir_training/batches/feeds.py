"""What hands a trainer the batch of each step: pictures from workers, or rows that are there already."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from asymcir_common import Preprocessing
from numpy.typing import NDArray

from asymcir_training.batches.loader import Batch, iterate_batches
from asymcir_training.batches.views import Augmentation, batch_at
from asymcir_training.engine.execution import Execution, Rows, pick
from asymcir_training.errors import TrainingError
from asymcir_training.pictures.sets import PictureSet


class Feed:
    """Hands a trainer the batch of each step, decoded and augmented by workers, from whatever step it resumes at."""

    def __init__(
        self,
        pictures: PictureSet,
        kept: NDArray[np.int64],
        *,
        spec: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        batch: int,
        steps: int,
        execution: Execution,
    ) -> None:
        self._pictures, self._kept = pictures, kept
        self._open = partial(
            iterate_batches,
            pictures,
            kept,
            spec=spec,
            augmentation=augmentation,
            seed=seed,
            batch=batch,
            steps=steps,
            rank=execution.processes.rank,
            world=execution.processes.world,
            workers=execution.workers,
            pin_memory=execution.processes.device.type == "cuda",
        )
        self._batches: Iterator[Batch] | None = None
        self._last: Batch | None = None

    def start(self, first: int) -> None:
        """Begin at a step."""
        self._batches = self._open(first=first)

    def take(self, number: int) -> Batch:
        """Return the batch of the next step, which must be `number`."""
        if self._batches is None:
            self.start(number)
        assert self._batches is not None
        self._last = next(self._batches)
        if self._last.number != number:
            raise TrainingError(f"expected the batch of step {number}, got that of step {self._last.number}")
        return self._last

    def describe(self, number: int) -> dict[str, Any]:
        """Name the pictures of a step's batch, which must be the last one taken."""
        if self._last is None or self._last.number != number:
            return {}
        return {"pictures": [self._pictures.keys[self._kept[i]] for i in self._last.whole]}


class RowFeed:
    """Hands a trainer rows that are there already, a cache's patches, in place of pictures."""

    def __init__(self, rows: Rows, *, seed: int, batch: int, execution: Execution) -> None:
        self._rows, self._seed, self._batch, self._execution = rows, seed, batch, execution

    def take(self, number: int) -> Batch:
        """Return the batch of a step; `pixels` holds this process's rows."""
        whole = batch_at(len(self._rows), self._batch, seed=self._seed, number=number)
        own = whole[self._execution.own_rows(len(whole))]
        rows = pick(self._rows, own, self._execution.processes.device).float()
        return Batch(number=number, index=own, whole=whole, pixels=rows, waited_s=0.0)
