"""The query cache: composed queries of triplets, computed once for each picture and modifier, for one encoder.

A store (see keyed_rows.py) ROOT/queries-KEY, KEY of the encoder that asks and of the foundation; the key
of a query is the SHA-256 of its picture's SHA-256 and its modifier.

Notation: t queries, E joint-embedding width.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymcir_training.engine.execution import PickedRows
from asymcir_training.errors import CacheError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.prompts import PROMPTS
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.teacher.vectors import keep_vectors, store_folder


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
    keys = [
        hashlib.sha256(identity.tobytes() + (text.encode("utf-8", "surrogatepass") if text.strip() else b"")).digest()
        for identity, text in zip(identities, modifiers, strict=True)
    ]

    def make(numbers: list[int]) -> Iterator[tuple[Sequence[int], NDArray[np.float32]]]:
        # Queries of one picture side by side: the encoder sees it once.
        order = sorted(numbers, key=lambda number: identities[number].tobytes())
        done = 0
        for block in compose(order):
            if not bool(torch.isfinite(block).all()):
                raise CacheError("the encoder composes queries that are not finite: look at its weights")
            yield order[done : done + len(block)], block.numpy()
            done += len(block)

    return keep_vectors(
        store_folder(root, "queries", facts),
        facts,
        keys,
        make,
        file="queries.f32",
        width=foundation.embedding_width,
        what="the query cache",
        of="queries",
    )
