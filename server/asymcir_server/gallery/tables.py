"""Opening the SQLite files of a published snapshot."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asymcir_common import BundleError


@contextmanager
def opening_table(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file read-only, for every thread, and take what fails in the block for a damaged file.

    The connection stays open after the block. SQLite takes no lock: the file never changes.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        yield sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    except sqlite3.Error as exc:
        raise BundleError(f"cannot read {path}: {exc}; build the gallery again") from exc
