"""What the frozen towers say about pictures and texts that fit in memory; cache.py keeps those that do not.

Notation: n pictures, R patches, P phrases, E joint-embedding width.
"""

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asymcir_training.batches.views import gather
from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.prompts import TOKENS_PROMPT

_SAY_EVERY_S = 10.0
_LOG = logging.getLogger(__name__)


@torch.no_grad()
def embed_pictures(foundation: Foundation, pictures: Sequence[NDArray[np.uint8]], batch: int = 64) -> Tensor:
    """Run the frozen visual tower over every picture: [n, E], not normalised."""
    total = sum(len(array) for array in pictures)
    found = []
    for start in range(0, total, batch):
        pixels = gather(pictures, np.arange(start, min(start + batch, total)))  # [b, 3, S, S]
        found.append(foundation.encode_pixels(foundation.normalise_pixels(pixels.permute(0, 2, 3, 1))))
    return torch.cat(found)


@torch.no_grad()
def embed_patches(foundation: Foundation, pictures: Sequence[NDArray[np.uint8]], batch: int = 64) -> Tensor:
    """Run the frozen visual tower's patches over every picture: [n, R, E], float16, L2-normalised."""
    total = sum(len(array) for array in pictures)
    found = []
    for start in range(0, total, batch):
        pixels = gather(pictures, np.arange(start, min(start + batch, total)))
        patches = foundation.encode_patches(foundation.normalise_pixels(pixels.permute(0, 2, 3, 1)))
        found.append(functional.normalize(patches, dim=-1).half())
    return torch.cat(found)


@torch.no_grad()
def embed_texts(foundation: Foundation, texts: Sequence[str], batch: int = 256) -> Tensor:
    """Embed texts: [n, E], L2-normalised; says how far it is where that takes long."""
    found = []
    said_s = time.monotonic()
    for start in range(0, len(texts), batch):
        found.append(foundation.encode_text(texts[start : start + batch]))
        if time.monotonic() - said_s > _SAY_EVERY_S:
            said_s = time.monotonic()
            _LOG.info("texts: %d/%d", min(start + batch, len(texts)), len(texts))
    return functional.normalize(torch.cat(found), dim=-1)


def embed_phrases(foundation: Foundation, phrases: Sequence[str]) -> Tensor:
    """Embed phrases as "a photo of X": [P, E], L2-normalised."""
    return embed_texts(foundation, [TOKENS_PROMPT.format(tokens=phrase) for phrase in phrases])
