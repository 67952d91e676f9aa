"""Many short texts in little memory: the names of a million pictures, in every worker."""

from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class LazyStrings(Sequence[str]):
    """Texts that are made when they are asked for, by `_get` of a number from 0 to below the length."""

    __slots__ = ()

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self._get(range(len(self))[place])

    @abstractmethod
    def _get(self, number: int) -> str:
        """Make the text of a number."""


class Strings(LazyStrings):
    """Many short texts in one block of bytes: a million file names in 30 MB rather than 100."""

    __slots__ = ("_block", "_ends")

    def __init__(self, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self._block, self._ends = block, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Strings":
        """Pack texts."""
        builder = StringsBuilder()
        for text in texts:
            builder.add(text)
        return builder.build()

    def __len__(self) -> int:
        return len(self._ends)

    def _get(self, number: int) -> str:
        start = int(self._ends[number - 1]) if number else 0
        return self._block[start : int(self._ends[number])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        block, start = self._block.tobytes(), 0
        for end in self._ends.tolist():
            yield block[start:end].decode("utf-8", "surrogateescape")
            start = end

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the bytes and where each text ends in them, for digests and files."""
        return self._block, self._ends


class StringsBuilder:
    """Collects texts for a `Strings`."""

    def __init__(self) -> None:
        self._block, self._ends = bytearray(), array("q")

    def add(self, text: str) -> None:
        """Append one."""
        self._block += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._block))

    def build(self) -> Strings:
        """Return what was collected."""
        return Strings(np.frombuffer(bytes(self._block), np.uint8), np.array(self._ends, np.int64))
