"""Files of rows of one shape, written in order, with their room reserved beforehand."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says of a full disk, or a used-up quota."""

_CANNOT_RESERVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_BLOCK_BYTES = 512  # what st_blocks counts in


class RowFile:
    """One file of rows; a context manager, which closes it."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: DTypeLike) -> None:
        """Open, or begin, a file.

        Args:
            path: the file.
            shape: of one row.
            dtype: of its values.
        """
        self.path = path
        self.dtype = np.dtype(dtype)
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    @property
    def size_bytes(self) -> int:
        """How long the file is."""
        return os.fstat(self._handle).st_size

    @property
    def allocated_bytes(self) -> int:
        """How much of it has its place on the disk."""
        found = os.fstat(self._handle)
        return min(found.st_size, found.st_blocks * _BLOCK_BYTES)

    def allocate(self, rows: int) -> None:
        """Give the file the room of that many rows; OSError where there is not so much."""
        try:
            os.posix_fallocate(self._handle, 0, max(1, rows * self.row_bytes))
        except OSError as exc:
            if exc.errno not in _CANNOT_RESERVE:
                raise
            os.ftruncate(self._handle, rows * self.row_bytes)

    def write(self, row: int, values: NDArray[Any]) -> None:
        """Write rows from a place on."""
        rest = memoryview(np.ascontiguousarray(values, self.dtype).data).cast("B")
        offset = row * self.row_bytes
        while rest:
            written = os.pwrite(self._handle, rest, offset)
            rest, offset = rest[written:], offset + written

    def flush(self) -> None:
        """Return when all that was written is on the disk."""
        os.fsync(self._handle)

    def cut(self, rows: int) -> None:
        """Keep only the first rows."""
        self.cut_bytes(rows * self.row_bytes)

    def cut_bytes(self, size_bytes: int) -> None:
        """Keep only the first bytes."""
        os.ftruncate(self._handle, size_bytes)
