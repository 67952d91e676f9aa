"""Recall of composed queries over triplets, and how different the tokens are, measured while an encoder trains.

Notation: t triplets, r reference pictures, N gallery size, S picture side, E joint-embedding width, L sentence tokens,
D word-embedding width, h, w sides of an attention map.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from asymcir_common import ImageError, Preprocessing
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from asymcir_training.batches.scan import PassProgress
from asymcir_training.batches.workers import run_jobs
from asymcir_training.engine.execution import Rows, pick
from asymcir_training.errors import DataError
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.preprocessing import normalise_pixels
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.pictures.files import PictureFiles
from asymcir_training.runs.token_log import (
    ATTENTION_OVERLAP,
    CENTRED_RANK,
    EFFECTIVE_RANK,
    TOKEN_COSINE,
    measure_tokens,
)
from asymcir_training.triplets.pictures import TripletGallery
from asymcir_training.triplets.ranking import measure_recall
from asymcir_training.triplets.triplet import PictureTriplet

_BATCH = 64
_LOG = logging.getLogger(__name__)


class TripletValidation:
    """Measures an encoder: calling it returns R@1, R@5 and R@10 of composed queries in a gallery of type `original`.

    A query's own reference is taken out of its ranking. Of a sentence of several tokens, it also returns how different
    the references' tokens are, and R@10 with the first token alone, with their mean in place of each, and with all in
    reverse order. Tokens that are nearly one are warned of, once.

    Attributes:
        digest: names what is asked, so that figures of other questions are not compared.
    """

    def __init__(
        self,
        foundation: Foundation,
        triplets: Sequence[PictureTriplet],
        *,
        gallery: TripletGallery,
        features: Rows,
        kept: Sequence[int],
        spec: Preprocessing,
        device: torch.device,
    ) -> None:
        """Read the references; triplets with a picture that cannot be read are left out.

        Args:
            foundation: frozen, on the device.
            triplets: t of them.
            gallery: what `gather_gallery` made of them.
            features: [rows, E], the foundation's image features of the gallery's pictures, of those that can be read.
            kept: [rows], the numbers of those pictures.
            spec: how the encoder sees pictures.
            device: to encode on.

        Raises:
            DataError: no triplet whose pictures can be read.
        """
        self._foundation, self._spec, self._device = foundation, spec, device
        self._warned = False
        references = PictureFiles(list(dict.fromkeys(triplet.reference for triplet in triplets)))
        squares: list[NDArray[np.uint8]] = []
        places: dict[Path, int] = {}
        progress = PassProgress("validation:", total=len(references), first=0)
        for number, path in enumerate(references.paths):
            progress.update(number, number - len(places))
            try:
                squares.append(references.decode(number, spec))
            except ImageError as exc:
                _LOG.warning("validation: %s", exc)
            else:
                places[path] = len(places)
        usable, found = gallery.restrict(kept, [triplet.reference in places for triplet in triplets])
        if not usable:
            raise DataError(f"none of {len(triplets)} triplets to validate on has pictures that can be read")
        if len(usable) < len(triplets):
            _LOG.warning("validation: %d triplets left out: their pictures cannot be read", len(triplets) - len(usable))
        asked = [triplets[number] for number in usable]
        self._answers, self._excluded = found.answers, found.excluded
        rows = pick(features, np.arange(len(features)), torch.device("cpu")).float()
        self._gallery = functional.normalize(rows, dim=-1)
        self._modifiers = [triplet.modifier for triplet in asked]
        self._asked = np.asarray([places[triplet.reference] for triplet in asked], dtype=np.int64)
        self._pixels = np.stack(squares)
        self.digest = digest(
            weights={},
            facts={
                "triplets": [f"{t.reference} {t.modifier} {t.target}" for t in asked],
                "gallery": len(self._gallery),
            },
        )
        _LOG.info("validation: %d queries in a gallery of %d", len(asked), len(self._gallery))

    @torch.no_grad()
    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Measure an encoder in eval mode."""
        tokens, maps = _encode_references(encoder, self._pixels, spec=self._spec, device=self._device)
        figures = self._measure(tokens)
        found = measure_tokens(tokens, maps)
        if found is None:
            return figures
        figures |= {
            TOKEN_COSINE: found.cosine,
            EFFECTIVE_RANK: found.effective_rank,
            CENTRED_RANK: found.centred_rank,
            **({} if found.overlap is None else {ATTENTION_OVERLAP: found.overlap}),
        }
        if found.warning and not self._warned:
            self._warned = True
            _LOG.warning("validation: %s", found.warning)
        changed = {
            "first token": tokens[:, :1],
            "mean token": tokens.mean(dim=1, keepdim=True).expand_as(tokens),
            "reversed": tokens.flip(1),
        }
        return figures | {f"R@10 {name}": self._measure(sent)["R@10"] for name, sent in changed.items()}

    def _measure(self, tokens: Tensor) -> dict[str, float]:
        """Measure the recall of queries composed from the references' tokens [r, L, D]."""
        queries = _compose(self._foundation, tokens, self._asked, self._modifiers)
        return measure_recall(functional.normalize(queries, dim=-1), self._gallery, self._answers, self._excluded)


@torch.no_grad()
def compose_queries(
    encoder: nn.Module,
    foundation: Foundation,
    pixels: NDArray[np.uint8],
    asked: NDArray[np.int64],
    modifiers: Sequence[str],
    *,
    spec: Preprocessing,
    device: torch.device,
) -> Tensor:
    """Compose queries from reference pictures and modifiers.

    Args:
        encoder: light or symmetric, in eval mode: normalised pixels -> sentence tokens.
        foundation: frozen.
        pixels: [r, S, S, 3].
        asked: [t], the reference of each query.
        modifiers: t; an empty one leaves the change away.
        spec: to normalise with.
        device: to encode on.

    Returns:
        [t, E], not normalised, on the CPU.
    """
    tokens, _ = _encode_references(encoder, pixels, spec=spec, device=device)
    return _compose(foundation, tokens, asked, modifiers)


def compose_triplets(
    encoder: LightEncoder | SymmetricEncoder,
    foundation: Foundation,
    references: Sequence[Path],
    modifiers: Sequence[str],
    *,
    workers: int = 0,
) -> Iterator[Tensor]:
    """Compose the queries of triplets from their picture files, a block at a time.

    Args:
        encoder: in eval mode, on the foundation's device.
        foundation: frozen.
        references: [t], the picture that each asks with.
        modifiers: t.
        workers: processes that decode; 0: none beside this one.

    Yields:
        [b, E], not normalised, on the CPU: t in all.

    Raises:
        ImageError: a picture is corrupt.
    """
    spec, device = encoder.preprocessing, foundation.word_embedding_table().device
    starts = range(0, len(references), _BATCH)
    job = _DecodeReferences(references=references, spec=spec)
    for start, (pixels, asked) in zip(starts, run_jobs(job, starts, workers=workers), strict=True):
        part = modifiers[start : start + _BATCH]
        yield compose_queries(encoder, foundation, pixels.numpy(), asked.numpy(), part, spec=spec, device=device)


def _encode_references(
    encoder: nn.Module, pixels: NDArray[np.uint8], *, spec: Preprocessing, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Encode pictures [r, S, S, 3] to their tokens [r, L, D], and of a light encoder to their maps [r, L, h, w]."""
    tokens, maps = [], []
    for start in range(0, len(pixels), _BATCH):
        batch = normalise_pixels(torch.from_numpy(pixels[start : start + _BATCH]).to(device), spec)
        if isinstance(encoder, LightEncoder):
            found, looked_at = encoder.forward_with_maps(batch)
            maps.append(looked_at)
        else:
            found = encoder(batch)
        tokens.append(found)
    return torch.cat(tokens), torch.cat(maps) if maps else None


def _compose(foundation: Foundation, tokens: Tensor, asked: NDArray[np.int64], modifiers: Sequence[str]) -> Tensor:
    """Compose queries [t, E], on the CPU, from the tokens [r, L, D] of the references that each asks with."""
    found = []
    for start in range(0, len(asked), _BATCH):
        part = torch.from_numpy(asked[start : start + _BATCH]).to(tokens.device)
        found.append(foundation.compose_query(tokens[part], modifiers[start : start + _BATCH]).float().cpu())
    return torch.cat(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _DecodeReferences:
    """Start of a block -> the pixels of its references, each once, and which of them each triplet asks with."""

    references: Sequence[Path]
    spec: Preprocessing

    def __call__(self, start: int) -> tuple[Tensor, Tensor]:
        block = self.references[start : start + _BATCH]
        files = PictureFiles(list(dict.fromkeys(block)))
        places = {path: place for place, path in enumerate(files.paths)}
        pixels = np.stack([files.decode(number, self.spec) for number in range(len(files))])
        return torch.from_numpy(pixels), torch.tensor([places[path] for path in block])
