"""What the frozen text tower says about texts that fit in memory.

Notation: n texts, P phrases, E joint-embedding width.
"""

import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from asymcir_training.foundation.model import Foundation
from asymcir_training.foundation.prompts import TOKENS_PROMPT

_SAY_EVERY_S = 10.0
_LOG = logging.getLogger(__name__)


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
