"""How different the tokens of a sentence are: whether L tokens say more than one does.

Notation: n pictures, L sentence tokens, D word-embedding width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import TokensError

COLLAPSED_COSINE = 0.9
"""Above this mean cosine between the tokens of a picture, a sentence is reported as one word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDiversity:
    """How different the tokens of a picture are, over n pictures.

    Attributes:
        cosine: mean cosine between two tokens of one picture, mean over pictures; 1 for a single token.
        least_cosine, largest_cosine: of that mean, over pictures.
        effective_rank: participation ratio of the tokens' Gram matrix, mean over pictures: from 1 (all tokens have one
            direction) to L (orthogonal tokens).
        cosine_between_pictures: mean cosine between the same token of two pictures, the pictures side by side.
    """

    cosine: float
    least_cosine: float
    largest_cosine: float
    effective_rank: float
    cosine_between_pictures: float

    @property
    def collapsed(self) -> bool:
        """Whether the tokens of a picture are nearly one."""
        return self.cosine > COLLAPSED_COSINE

    def figures(self) -> dict[str, float]:
        """Return name -> number, for result files and logs."""
        return {
            "cosine between tokens of a picture": self.cosine,
            "effective rank of a picture's tokens": self.effective_rank,
            "cosine of a token between pictures": self.cosine_between_pictures,
        }


def measure_diversity(tokens: NDArray[np.float32]) -> TokenDiversity:
    """Measure the tokens of pictures.

    Args:
        tokens: [n, L, D], n of at least 2, finite, no token of length 0.

    Raises:
        TokensError: another shape, or tokens without a direction.
    """
    if tokens.ndim != 3 or len(tokens) < 2 or tokens.shape[1] < 1:
        raise TokensError(f"expected sentence tokens [n, L, D] of 2 or more pictures, got {list(tokens.shape)}")
    lengths = np.linalg.norm(tokens, axis=2, keepdims=True)
    if not np.isfinite(tokens).all() or not lengths.all():
        raise TokensError("expected finite sentence tokens of a length above 0, got others: check the encoder")
    units = tokens.astype(np.float64) / lengths
    gram = units @ units.transpose(0, 2, 1)  # [n, L, L]
    count = tokens.shape[1]
    pairs = count * (count - 1)
    cosines = (gram.sum(axis=(1, 2)) - count) / pairs if pairs else np.ones(len(tokens))  # [n]
    # (sum of eigenvalues)^2 / sum of their squares; the trace is L.
    ranks = count**2 / (gram**2).sum(axis=(1, 2))  # [n]
    return TokenDiversity(
        cosine=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        largest_cosine=float(cosines.max()),
        effective_rank=float(ranks.mean()),
        cosine_between_pictures=float((units[1:] * units[:-1]).sum(axis=2).mean()),
    )
