"""Who asks: the papers' own systems and the baselines, from checkpoints, each as triplets -> query embeddings.

Notation: t triplets, E joint-embedding width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asymcir_training.foundation.model import Foundation
from asymcir_training.models.checkpoints import load_light_encoder, load_symmetric_encoder, load_transagg
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.models.transagg import TransAgg
from asymcir_training.teacher.cache import TeacherCache
from asymcir_training.teacher.queries import cache_queries
from asymcir_training.teacher.texts import TextCache
from asymcir_training.triplets.modifiers import check_triplets
from asymcir_training.triplets.pictures import embed_modifiers
from asymcir_training.triplets.triplet import PictureTriplet
from asymcir_training.triplets.validation import compose_triplets
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asymcir_benchmarks.errors import BenchmarkError

TRAINED_SYSTEMS = ("isa", "isa-symmetric", "transagg")
"""Queries of a checkpoint: the light encoder's tokens, the symmetric encoder's, UNION's own fusion."""
BASELINES = ("image", "text", "image+text")
"""Queries of the foundation alone: its embedding of the reference, of the modifier, and the sum of the two."""
SYSTEMS = (*TRAINED_SYSTEMS, *BASELINES)
_BATCH = 32


class QuerySystem:
    """One of SYSTEMS, opened: triplets -> query embeddings."""

    def __init__(self, name: str, foundation: Foundation, checkpoint: Path | None = None) -> None:
        """Open a system.

        Raises:
            BenchmarkError: an unknown name, a checkpoint where none is needed or none where one is, or one of another
                foundation.
            CheckpointError: no such checkpoint, or one of another kind.
        """
        if name not in SYSTEMS:
            raise BenchmarkError(f"expected a system of {', '.join(SYSTEMS)}, got {name!r}")
        if (name in TRAINED_SYSTEMS) != (checkpoint is not None):
            way = "is trained: pass its checkpoint" if checkpoint is None else "is the foundation alone: leave it away"
            raise BenchmarkError(f"the system {name} {way} (--query)")
        self.name = name
        self._foundation = foundation
        self._device = foundation.word_embedding_table().device
        self._encoder: LightEncoder | SymmetricEncoder | None = None
        self._fusion: TransAgg | None = None
        self.metadata: dict[str, Any] = {}
        if checkpoint is None:
            return
        if name == "transagg":
            self._fusion, self.metadata = load_transagg(checkpoint)
            self._fusion.to(self._device)
        elif name == "isa-symmetric":
            self._encoder, self.metadata = load_symmetric_encoder(checkpoint)
        else:
            self._encoder, self.metadata = load_light_encoder(checkpoint)
        check_foundation(checkpoint, self.metadata, foundation)
        if isinstance(self._encoder, SymmetricEncoder):
            self._encoder.attach(foundation)
        if self._encoder is not None:
            self._encoder.to(self._device)

    @property
    def needs_patches(self) -> bool:
        """Whether queries are made from the foundation's patches of the references."""
        return self._fusion is not None

    def check(self, triplets: Sequence[PictureTriplet]) -> None:
        """Refuse triplets whose modifiers do not fit the text encoder's context, before any picture is encoded.

        Raises:
            DataError: one does not fit; names it.
        """
        if self.name != "image":
            length = None if self._encoder is None else self._encoder.sentence_length
            check_triplets(self._foundation, triplets, sentence_length=length)

    @torch.no_grad()
    def encode(
        self,
        triplets: Sequence[PictureTriplet],
        cache: TeacherCache,
        rows: Sequence[int],
        *,
        root: Path,
        workers: int = 0,
    ) -> Tensor:
        """Make queries.

        Args:
            triplets: t of them, their references readable.
            cache: the foundation's outputs for the references, with patches where they are needed.
            rows: [t], the row of the cache that each asks with.
            root: folder of the caches, which keeps the composed queries and the texts too.
            workers: processes that decode; 0: none beside this one.

        Returns:
            [t, E], L2-normalised, on the CPU.
        """
        modifiers = [triplet.modifier for triplet in triplets]
        if self._encoder is not None:
            queries = self._compose(self._encoder, triplets, cache, np.asarray(rows), root, workers)
        elif self._fusion is not None:
            queries = self._fuse(modifiers, cache, np.asarray(rows))
        else:
            images = torch.from_numpy(np.asarray(cache.embedding[np.asarray(rows)]))
            queries = self._baseline(modifiers, images, root)
        return functional.normalize(queries, dim=-1)

    def _compose(
        self,
        encoder: LightEncoder | SymmetricEncoder,
        triplets: Sequence[PictureTriplet],
        cache: TeacherCache,
        rows: NDArray[np.int64],
        root: Path,
        workers: int,
    ) -> Tensor:
        modifiers = [triplet.modifier for triplet in triplets]

        def compose(numbers: Sequence[int]) -> Iterator[Tensor]:
            references, changes = [triplets[i].reference for i in numbers], [modifiers[i] for i in numbers]
            return compose_triplets(encoder, self._foundation, references, changes, workers=workers)

        found = cache_queries(
            root,
            encoder,
            self._foundation,
            identities=cache.identities[rows],
            modifiers=modifiers,
            compose=compose,
        )
        return torch.from_numpy(found[:])

    def _fuse(self, modifiers: Sequence[str], cache: TeacherCache, rows: NDArray[np.int64]) -> Tensor:
        assert self._fusion is not None and cache.patches is not None
        found = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            image = torch.from_numpy(np.asarray(cache.embedding[part])).to(self._device)
            patches = torch.from_numpy(np.asarray(cache.patches[part])).to(self._device)
            text = embed_modifiers(self._foundation, modifiers[start : start + _BATCH]).to(self._device)
            found.append(self._fusion(image, patches, text).float().cpu())
        return torch.cat(found)

    def _baseline(self, modifiers: Sequence[str], image_features: Tensor, root: Path) -> Tensor:
        image = functional.normalize(image_features, dim=-1)
        if self.name == "image":
            return image
        text = torch.from_numpy(TextCache(root, self._foundation).embed(modifiers)[:])
        return text if self.name == "text" else image + text


def check_foundation(checkpoint: Path, metadata: dict[str, Any], foundation: Foundation) -> None:
    """Refuse a checkpoint that was trained with another foundation, by its text tower and, where noted, its visual one.

    Raises:
        BenchmarkError: it was.
    """
    ways = {"word_space": foundation.word_space}
    if "visual_digest" in metadata:
        ways["visual_digest"] = foundation.visual_digest
    for name, measure in ways.items():
        found, expected = str(metadata.get(name)), measure()
        if found != expected:
            raise BenchmarkError(
                f"{checkpoint} was trained with the foundation {metadata.get('foundation')} ({name} {found[:12]}), "
                f"this one is {foundation.name} ({expected[:12]}): pass that one"
            )
