"""Picture files by their paths, as a set that caches and loaders read.

Notation: n pictures, S picture side.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from asymcir_common import Preprocessing, decode_image, preprocess
from asymcir_common.places import PathReader
from numpy.typing import NDArray

from asymcir_training.errors import DataError
from asymcir_training.pictures.sets import Wordless


class PictureFiles(Wordless):
    """Picture files, in the order given; a `PictureSet` without captions. A path may lead into a zip or a tar.

    Attributes:
        keys: [n], the paths.
        digest: over paths and byte sizes.
        problems: none: what cannot be read shows when it is.

    Raises:
        DataError: a file that is not there.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._reader = PathReader()
        sizes = [self._reader.size(path) for path in paths]
        missing = [path for path, size in zip(paths, sizes, strict=True) if size < 0]
        if missing:
            raise DataError(f"there is no picture {missing[0]}" + (f" ({len(missing)} missing)" if missing[1:] else ""))
        self.paths = [*paths]
        self.keys: Sequence[str] = [str(path) for path in paths]
        self.problems: Sequence[tuple[str, str]] = ()
        sha256 = hashlib.sha256()
        for path, size in zip(paths, sizes, strict=True):
            sha256.update(f"{path.resolve()}:{size}\n".encode("utf-8", "surrogateescape"))
        self.digest = sha256.hexdigest()

    def __len__(self) -> int:
        """Return n."""
        return len(self.paths)

    def read(self, number: int) -> bytes:
        """Return a picture's file; ImageError when it cannot be read."""
        return self._reader.read(self.paths[number])

    def place(self, number: int) -> tuple[str, int, int]:
        """Return where a picture lies, its size in bytes, and when that file changed, in ns."""
        return self._reader.stamp(self.paths[number])

    def decode(self, number: int, spec: Preprocessing) -> NDArray[np.uint8]:
        """Return a picture as a network sees it, [S, S, 3]; ImageError when it is corrupt."""
        return preprocess(decode_image(self.read(number), name=self.keys[number]), spec)
