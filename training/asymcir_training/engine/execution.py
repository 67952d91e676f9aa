"""How a trainer's steps are carried out: on which processes, in what precision, in how many parts, fed by how many."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.engine.contrastive_step import chunk_rows
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import Processes
from asymcir_training.foundation.model import Foundation

_SAMPLED_ROWS = 4096


class PickedRows:
    """Rows of an array, in an order of their own; read when they are asked for.

    Attributes:
        shape, dtype: of all rows together, [n, ...].
    """

    def __init__(self, rows: NDArray[Any], index: NDArray[np.int64]) -> None:
        """Take an array [m, ...], which may be memory-mapped, and the row of it that each of the n is."""
        self._rows, self._index = rows, index
        self.shape = (len(index), *rows.shape[1:])
        self.dtype = rows.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, picked: Any) -> NDArray[Any]:
        found: NDArray[Any] = np.asarray(self._rows[self._index[picked]])
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy  # picking copies
        return np.asarray(self[:], dtype)


Rows = Tensor | NDArray[Any] | PickedRows
"""Anything [n, ...] whose rows an index array picks: a tensor, an array, a memory-mapped file, some rows of one."""


def pick_rows(rows: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any] | PickedRows:
    """Return rows of an array by number; those that follow one another as a part of it, without a copy."""
    start = int(index[0]) if len(index) else 0
    if (index == np.arange(start, start + len(index))).all():
        return rows[start : start + len(index)]
    return PickedRows(rows, index)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What a trainer runs on; the defaults are one process on the CPU, float32, whole batches.

    Attributes:
        processes: that share every batch.
        precision: of the forward passes.
        chunks: parts that a process's share of a batch goes through in.
        workers: processes that decode and augment for each trainer.
        ema: decay of the average of the weights; 0 for none.
    """

    processes: Processes = field(default_factory=Processes)
    precision: Precision = field(default_factory=lambda: Precision("fp32", torch.device("cpu")))
    chunks: int = 1
    workers: int = 0
    ema: float = 0.0

    def own_rows(self, batch: int) -> slice:
        """Return which rows of a batch are this process's."""
        share = batch // self.processes.world
        return slice(self.processes.rank * share, (self.processes.rank + 1) * share)

    def split(self, batch: int) -> list[slice]:
        """Cut this process's rows of a batch into its chunks."""
        return chunk_rows(batch, chunks=self.chunks, processes=self.processes)

    def identity(self) -> dict[str, Any]:
        """Return what of this changes the result of a run."""
        return {"precision": self.precision.name, "chunks": self.chunks, "ema": self.ema}

    @torch.no_grad()
    def encode_texts(self, foundation: Foundation, texts: Sequence[str]) -> Tensor:
        """Encode texts by the frozen tower, chunk by chunk: [b, E], not normalised, float32."""
        with self.precision.autocast():
            found = [foundation.encode_text(texts[part]) for part in self.split(len(texts) * self.processes.world)]
        return torch.cat(found).float()


def pick(rows: Rows, index: NDArray[np.int64], device: torch.device) -> Tensor:
    """Pick rows by number: [n, ...] -> [b, ...] on a device."""
    if isinstance(rows, Tensor):
        return rows[torch.from_numpy(index).to(rows.device)].to(device)
    return torch.from_numpy(np.ascontiguousarray(rows[index])).to(device)


def sample_rows(rows: Rows) -> Tensor:
    """Pick an even sample of rows, first and last among them, to name large features by: on the CPU."""
    index = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED_ROWS).astype(np.int64))
    return pick(rows, index, torch.device("cpu"))
