"""The query cache: composed queries of triplets, computed once for each picture and modifier, for one encoder.

A store (see keyed_rows.py) ROOT/queries-KEY, KEY of the encoder that asks and of the foundation; the key
of a query is the SHA-256 of its picture's SHA-256 and its modifier.

Notation: t queries, E joint-embedding width.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.batches.scan import PassProgress, only_one_process
from asymcir_training.engine.execution import PickedRows
from asymcir_training.errors import CacheError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.prompts import PROMPTS
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.teacher.keyed_rows import KeyedRows, Part

_KEY_LENGTH = 16
_WHAT = "the query cache"

_log = logging.getLogger(__name__)


def cache_queries(
    root: Path,
    encoder: LightEncoder | SymmetricEncoder,
    foundation: Foundation,
    *,
    identities: NDArray[np.uint8],
    modifiers: Sequence[str],
    compose: Callable[[Sequence[int]], Iterator[Tensor]],
) -> PickedRows:
    """Open composed queries, making those that no run had before; several processes may call this at once.

    Args:
        root: where stores are; that of the teacher's outputs serves.
        encoder: that asks.
        foundation: frozen; composes in float32.
        identities: [t, 32], uint8, of the pictures that ask (see `TeacherCache`).
        modifiers: t.
        compose: numbers of queries -> these queries, not normalised, some [b, E] at a time, in that order.

    Returns:
        [t, E], float32, not normalised, memory-mapped.

    Raises:
        CacheError: a damaged store, no room for it, or queries that are not finite.
    """
    facts: dict[str, Any] = {
        "format": "asymcir-query-cache",
        "version": 1,
        "foundation": foundation.name,
        "word_space": foundation.word_space(),
        "encoder": digest(weights=encoder.state_dict(), facts={"config": encoder.config, "prompts": PROMPTS}),
        # A symmetric encoder reads the foundation's own patches.
        "visual_digest": foundation.visual_digest() if isinstance(encoder, SymmetricEncoder) else "",
        "precision": "fp32",
    }
    named = {name: value for name, value in facts.items() if name != "foundation"}
    folder = root / f"queries-{digest(weights={}, facts=named)[:_KEY_LENGTH]}"

    def open_store() -> KeyedRows:
        return KeyedRows(folder, facts, [Part(name="queries.f32", dtype=np.float32)], what=_WHAT)

    asked = [
        hashlib.sha256(identity.tobytes() + (text.encode("utf-8", "surrogatepass") if text.strip() else b"")).digest()
        for identity, text in zip(identities, modifiers, strict=True)
    ]
    numbers: dict[bytes, int] = {}
    for number, key in enumerate(asked):
        numbers.setdefault(key, number)
    keys = list(numbers)
    store = open_store()
    rows = store.find(keys)
    if (rows < 0).any():
        with only_one_process(folder, _WHAT):
            store = open_store()  # as the process before left it
            missing = [keys[place] for place in np.flatnonzero(store.find(keys) < 0)]
            # Queries of one picture side by side: the encoder sees it once.
            missing.sort(key=lambda key: identities[numbers[key]].tobytes())
            _log.info("queries: %d, of which %d differ and %d are new", len(asked), len(keys), len(missing))
            if missing:
                _fill(store, missing, compose([numbers[key] for key in missing]), foundation.embedding_width)
        rows = store.find(keys)
    (queries,) = store.read()
    if queries is None:
        queries = np.empty((0, foundation.embedding_width), np.float32)
    places = dict(zip(keys, rows.tolist(), strict=True))
    return PickedRows(queries, np.fromiter((places[key] for key in asked), np.int64, len(asked)))


def _fill(store: KeyedRows, keys: Sequence[bytes], blocks: Iterator[Tensor], width: int) -> None:
    progress = PassProgress("query cache:", total=len(keys), first=0, of="queries")
    done = 0
    with store.write([(width,)], most=len(keys)) as writer:
        for block in blocks:
            if not bool(torch.isfinite(block).all()):
                raise CacheError("the encoder composes queries that are not finite: look at its weights")
            writer.append(keys[done : done + len(block)], [block.numpy()])
            done += len(block)
            writer.flush_when_due()
            progress.update(done)
