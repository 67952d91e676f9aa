"""The text cache: embeddings of the frozen text tower, computed once for each text and shared by lists and runs.

A store (see keyed_rows.py) ROOT/texts-KEY, KEY of the text tower and the precision; the key of a text is its SHA-256.

Notation: n texts, E joint-embedding width.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from asymcir_training.batches.scan import PassProgress, only_one_process
from asymcir_training.engine.execution import PickedRows
from asymcir_training.errors import CacheError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.prompts import TOKENS_PROMPT
from asymcir_training.teacher.keyed_rows import KeyedRows, Part

_KEY_LENGTH = 16
_WHAT = "the text cache"

_log = logging.getLogger(__name__)


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
        # The name is how the foundation was asked for: its weights decide, not where they came from.
        named = {name: value for name, value in self._facts.items() if name != "foundation"}
        self.folder = root / f"texts-{digest(weights={}, facts=named)[:_KEY_LENGTH]}"

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
        different = list(dict.fromkeys(texts))
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in different]
        store = self._open()
        rows = store.find(keys)
        if (rows < 0).any():
            with only_one_process(self.folder, _WHAT):
                store = self._open()  # as the process before left it
                missing = np.flatnonzero(store.find(keys) < 0).tolist()
                _log.info("texts: %d, of which %d differ and %d are new", len(texts), len(different), len(missing))
                if missing:
                    self._fill(store, different, keys, missing, batch)
            rows = store.find(keys)
        (embedding,) = store.read()
        if embedding is None:
            embedding = np.empty((0, self._foundation.embedding_width), np.float32)
        places = dict(zip(different, rows.tolist(), strict=True))
        return PickedRows(embedding, np.fromiter((places[text] for text in texts), np.int64, len(texts)))

    def embed_phrases(self, phrases: Sequence[str]) -> PickedRows:
        """Embed phrases as "a photo of X": [n, E]; the rest is as in `embed`."""
        return self.embed([TOKENS_PROMPT.format(tokens=phrase) for phrase in phrases])

    def _open(self) -> KeyedRows:
        return KeyedRows(self.folder, self._facts, [Part(name="embedding.f32", dtype=np.float32)], what=_WHAT)

    @torch.no_grad()
    def _fill(
        self, store: KeyedRows, texts: Sequence[str], keys: Sequence[bytes], missing: Sequence[int], batch: int
    ) -> None:
        # Texts of like length in one pass: padding is work too.
        order = sorted(missing, key=lambda number: len(texts[number]))
        progress = PassProgress("text cache:", total=len(missing), first=0, of="texts")
        with store.write([(self._foundation.embedding_width,)], most=len(missing)) as writer:
            for start in range(0, len(order), batch):
                some = order[start : start + batch]
                features = self._foundation.encode_text([texts[number] for number in some]).float()
                found = functional.normalize(features, dim=-1).cpu()
                if not bool(torch.isfinite(found).all()):
                    raise CacheError(
                        f"the foundation gives embeddings that are not finite near the text {texts[some[0]]!r}: look "
                        "at its weights"
                    )
                writer.append([keys[number] for number in some], [found.numpy()])
                writer.flush_when_due()
                progress.update(start + len(some))
