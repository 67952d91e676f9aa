"""Stores of one vector for each key: those that are missing are made, once, by one process, whoever asks first.

Notation: n keys, with repeats, E joint-embedding width, b vectors made at a time.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymcir_training.batches.scan import PassProgress, only_one_process
from asymcir_training.engine.execution import PickedRows
from asymcir_training.foundation.digests import digest
from asymcir_training.teacher.keyed_rows import KeyedRows, Part

_KEY_LENGTH = 16

_log = logging.getLogger(__name__)


def store_folder(root: Path, kind: str, facts: Mapping[str, Any]) -> Path:
    """Return where the store of these facts is: ROOT/KIND-KEY.

    The foundation's name is how it was asked for and no part of KEY: its weights decide, not where they came from.
    """
    named = {name: value for name, value in facts.items() if name != "foundation"}
    return root / f"{kind}-{digest(weights={}, facts=named)[:_KEY_LENGTH]}"


def keep_vectors(
    folder: Path,
    facts: Mapping[str, Any],
    keys: Sequence[bytes],
    make: Callable[[list[int]], Iterator[tuple[Sequence[int], NDArray[np.float32]]]],
    *,
    file: str,
    width: int,
    what: str,
    of: str,
) -> PickedRows:
    """Open the vectors of keys, making those that no run had before; several processes may call this at once.

    Args:
        folder: of the store (see `store_folder`).
        facts: what the vectors are made with.
        keys: [n], 32 bytes each.
        make: numbers of keys, each of another key -> these numbers in any order, some at a time, with their vectors
            [b, E].
        file: the store's file of vectors.
        width: E.
        what: the store's name in messages, "the text cache".
        of: what its keys stand for, "texts".

    Returns:
        [n, E], float32, memory-mapped.

    Raises:
        CacheError: a damaged store, no room for it, or what `make` raises.
    """

    def open_store() -> KeyedRows:
        return KeyedRows(folder, facts, [Part(name=file, dtype=np.float32)], what=what)

    numbers: dict[bytes, int] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, number)
    different = list(numbers)
    store = open_store()
    rows = store.find(different)
    if (rows < 0).any():
        with only_one_process(folder, what):
            store = open_store()  # as the process before left it
            missing = [numbers[different[place]] for place in np.flatnonzero(store.find(different) < 0)]
            _log.info("%s: %d, of which %d differ and %d are new", of, len(keys), len(different), len(missing))
            if missing:
                progress, done = PassProgress(f"{what.removeprefix('the ')}:", total=len(missing), first=0, of=of), 0
                with store.write([(width,)], most=len(missing)) as writer:
                    for some, vectors in make(missing):
                        writer.append([keys[number] for number in some], [vectors])
                        writer.flush_when_due()
                        done += len(some)
                        progress.update(done)
        rows = store.find(different)
    (found,) = store.read()
    if found is None:
        found = np.empty((0, width), np.float32)
    places = dict(zip(different, rows.tolist(), strict=True))
    return PickedRows(found, np.fromiter((places[key] for key in keys), np.int64, len(keys)))
