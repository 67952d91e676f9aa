"""`vectors.npy` written row by row, its length unknown until the end."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VECTORS_NAME = "vectors.npy"
_HEADER_BYTES = 128


class VectorWriter:
    """Streams float32 rows [E] into an .npy file in bounded memory.

    Attributes:
        size: rows written so far.
    """

    def __init__(self, path: Path, width: int) -> None:
        """Leave room for the header."""
        self.size = 0
        self._width = width
        self._stream = path.open("wb")
        self._stream.write(b"\0" * _HEADER_BYTES)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Append rows [n, E]."""
        if rows.ndim != 2 or rows.shape[1] != self._width:
            raise ValueError(f"expected rows [n, {self._width}], got {list(rows.shape)}")
        self._stream.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.size += len(rows)

    def close(self) -> None:
        """Write the header and close.

        Source: the .npy format 1.0, numpy.lib.format.
        """
        record = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self.size}, {self._width}), }}".encode("ascii")
        magic = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
        self._stream.seek(0)
        self._stream.write(magic + record.ljust(_HEADER_BYTES - 11) + b"\n")
        self._stream.close()

    def abort(self) -> None:
        """Close without a header: the file does not load."""
        self._stream.close()
