"""LAR as the paper has it: BLIP's frozen matching encoder says whether a sentence and a picture belong together.

What the paper's public part says: the matching encoder reads the sentence tokens, looks at the large visual encoder's
features of the same picture, and must say "match". How its negatives are drawn could not be read; here they are drawn
as ALBEF and BLIP draw theirs: one picture for each sentence and one sentence for each picture, out of the batch, the
more often the more alike the two are. That is our reading.

Notation: b batch, L sentence tokens, D word-embedding width, E joint-embedding width, P patches, C width of the visual
tower.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from asymcir_training.errors import DataError
from asymcir_training.foundation.model import Foundation

SCALE = 1.0 / 0.07
"""Inverse temperature of the draw: where BLIP's own starts; what it became is not in the published checkpoints."""

MATCH = 1
"""Place of "match" among the head's two logits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HardNegatives:
    """What must not match.

    Attributes:
        images: [b], int64, for each sentence the place of a picture that is not its own.
        sentences: [b], int64, for each picture the place of a sentence that is not its own.
    """

    images: Tensor
    sentences: Tensor


def matching_logits(foundation: Foundation, sentence_tokens: Tensor, image_states: Tensor) -> Tensor:
    """Ask whether "a photo of <tokens>" and a picture belong together.

    Args:
        foundation: BLIP.
        sentence_tokens: [b, L, D].
        image_states: [b, P + 1, C], of the pictures beside them, from `encode_image_states`.

    Returns:
        Logits [b, 2]; gradients flow to sentence_tokens.

    Raises:
        FoundationError: a foundation without a matching encoder.
        DataError: not as many pictures as sentences.
    """
    _check_pairs(sentence_tokens, image_states)
    embeddings, mask, _, _ = foundation.embed_query(sentence_tokens)
    return foundation.match(embeddings, mask, image_states)


@torch.no_grad()
def draw_hard_negatives(text_features: Tensor, image_features: Tensor) -> HardNegatives:
    """Draw one wrong picture for each sentence and one wrong sentence for each picture.

    Torch's own generator draws; `contrastive_backward`, which computes a batch twice, winds it back in between.

    Args:
        text_features: [b, E], any length, of the sentences through the text tower.
        image_features: [b, E], any length, of their pictures.

    Raises:
        DataError: a batch of one, which holds nothing wrong.

    Source: ALBEF, arXiv:2107.07651, section 3.2; BLIP, arXiv:2201.12086.
    """
    texts = functional.normalize(text_features.float(), dim=-1)
    images = functional.normalize(image_features.float(), dim=-1)
    if len(texts) < 2:
        raise DataError("hard negatives need a wrong partner in the batch, got one pair: make the batch larger")
    own = torch.eye(len(texts), dtype=torch.bool)
    # Masked before the softmax, not after as there: the same shares, and never a row of nothing but zeros.
    logits = (SCALE * texts @ images.T).cpu().masked_fill(own, -torch.inf)  # [b sentences, b pictures]
    drawn_images = torch.multinomial(logits.softmax(dim=1), 1)[:, 0]
    drawn_sentences = torch.multinomial(logits.T.softmax(dim=1), 1)[:, 0]
    device = text_features.device
    return HardNegatives(images=drawn_images.to(device), sentences=drawn_sentences.to(device))


def local_alignment_by_matching(
    foundation: Foundation, sentence_tokens: Tensor, image_states: Tensor, negatives: HardNegatives
) -> Tensor:
    """LAR with a matching encoder: a sentence matches its own picture, and neither matches its hard negative.

    The encoder reads 3 b pairs. A sentence also gets a gradient as another picture's negative, so the rows of one call
    belong together; their losses are still kept apart, for a mean over more rows than are computed at once.

    Args:
        foundation: BLIP, frozen.
        sentence_tokens: [b, L, D], from the student.
        image_states: [b, P + 1, C], of the same pictures, from `encode_image_states`.
        negatives: from `draw_hard_negatives`.

    Returns:
        [b], for each row the mean cross-entropy of its three pairs; the mean over rows is BLIP's matching loss.

    Raises:
        FoundationError: a foundation without a matching encoder.
        DataError: not as many pictures as sentences.

    Source: ISA, arXiv:2403.01431, the LAR loss; the form of the negatives is our reading.
    """
    _check_pairs(sentence_tokens, image_states)
    tokens = torch.cat([sentence_tokens, sentence_tokens, sentence_tokens[negatives.sentences]])  # [3 b, L, D]
    states = torch.cat([image_states, image_states[negatives.images], image_states])  # [3 b, P + 1, C]
    logits = matching_logits(foundation, tokens, states).float()
    rows = len(sentence_tokens)
    answers = torch.full((3 * rows,), 1 - MATCH, device=logits.device)
    answers[:rows] = MATCH
    return functional.cross_entropy(logits, answers, reduction="none").view(3, rows).mean(dim=0)


def _check_pairs(sentence_tokens: Tensor, image_states: Tensor) -> None:
    if len(sentence_tokens) != len(image_states):
        raise DataError(f"expected as many pictures as sentences, got {len(image_states)} and {len(sentence_tokens)}")
