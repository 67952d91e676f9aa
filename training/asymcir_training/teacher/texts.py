"""The text cache: embeddings of the frozen text tower, computed once for each text and shared by lists and runs.

A store (see keyed_rows.py) ROOT/texts-KEY, KEY of the text tower and the precision; the key of a text is its SHA-256.

Notation: n texts, E joint-embedding width.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from asymcir_training.engine.execution import PickedRows
from asymcir_training.errors import CacheError
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.prompts import TOKENS_PROMPT
from asymcir_training.teacher.vectors import keep_vectors, store_folder


class TextCache:
    """Text embeddings of one foundation."""

    def __init__(self, root: Path, foundation: Foundation) -> None:
        """Take a foundation.

        Args:
            root: where stores are; that of the teacher's outputs serves.
            foundation: frozen, on its device. It computes in float32.
        """
        self._foundation = foundation
        self._facts = {
            "format": "asymcir-text-cache",
            "version": 1,
            "foundation": foundation.name,
            "word_space": foundation.word_space(),
            "precision": "fp32",
        }
        self.folder = store_folder(root, "texts", self._facts)

    def embed(self, texts: Sequence[str], *, batch: int = 256) -> PickedRows:
        """Embed texts, those that no list had before; several processes may call this at once.

        Args:
            texts: n of them; longer ones than the context are cut.
            batch: texts of one forward pass.

        Returns:
            [n, E], float32, L2-normalised, memory-mapped.

        Raises:
            CacheError: a damaged store, no room for it, or embeddings that are not finite.
        """
        return keep_vectors(
            self.folder,
            self._facts,
            [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts],
            lambda numbers: self._make(texts, numbers, batch),
            file="embedding.f32",
            width=self._foundation.embedding_width,
            what="the text cache",
            of="texts",
        )

    def embed_phrases(self, phrases: Sequence[str]) -> PickedRows:
        """Embed phrases as "a photo of X": [n, E]; the rest is as in `embed`."""
        return self.embed([TOKENS_PROMPT.format(tokens=phrase) for phrase in phrases])

    @torch.no_grad()
    def _make(
        self, texts: Sequence[str], numbers: Sequence[int], batch: int
    ) -> Iterator[tuple[Sequence[int], NDArray[np.float32]]]:
        # Texts of like length in one pass: padding is work too.
        order = sorted(numbers, key=lambda number: len(texts[number]))
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            features = self._foundation.encode_text([texts[number] for number in some]).float()
            found = functional.normalize(features, dim=-1).cpu()
            if not bool(torch.isfinite(found).all()):
                raise CacheError(
                    f"the foundation gives embeddings that are not finite near the text {texts[some[0]]!r}: look "
                    "at its weights"
                )
            yield some, found.numpy()
