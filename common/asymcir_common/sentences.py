"""How different the tokens of a sentence are: whether L tokens say more than one does.

Notation: n pictures, L sentence tokens, D word-embedding width, h, w sides of an attention map.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asymcir_common.errors import TokensError

COLLAPSED_SHARE = 0.1
"""A rank that is less than this share of the way from 1 to L is that of tokens that are nearly one."""

_LEAST_DIFFERENCE = 1e-6
"""Of a token's length: what lies nearer to the mean of its position does not differ from it but by rounding."""

_SUM_TOLERANCE = 0.02
"""How far an attention map, computed in fp16 or int8, may sum up to something else than 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDiversity:
    """How different the tokens of a picture are, over n pictures.

    Attributes:
        sentence_length: L.
        cosine: mean cosine between two tokens of one picture, mean over pictures; 1 for a single token.
        least_cosine, largest_cosine: of that mean, over pictures.
        effective_rank: participation ratio of the tokens' Gram matrix, mean over pictures: from 1 (all tokens have one
            direction) to L (orthogonal tokens).
        centred_rank: the same after the mean of each position over the pictures is taken off. Tokens that differ by a
            constant alone have a high effective rank, but say one thing about the picture: their centred rank is 1. It
            is 0 where no token depends on the picture.
        cosine_between_pictures: mean cosine between the same token of two pictures, the pictures side by side.
        overlap: share of attention that two tokens of a picture have in common (`measure_overlap`); None where no
            attention maps were given.
    """

    sentence_length: int
    cosine: float
    least_cosine: float
    largest_cosine: float
    effective_rank: float
    centred_rank: float
    cosine_between_pictures: float
    overlap: float | None = None

    @property
    def collapsed(self) -> bool:
        """Whether the tokens of a picture are nearly one: either rank is below 1 + COLLAPSED_SHARE * (L - 1).

        That is 1.5 for six tokens. A single token is not collapsed.
        """
        least = 1.0 + COLLAPSED_SHARE * (self.sentence_length - 1)
        return self.sentence_length > 1 and min(self.effective_rank, self.centred_rank) < least

    @property
    def warning(self) -> str:
        """What to say of collapsed tokens; empty where they are not."""
        if not self.collapsed:
            return ""
        return (
            f"the {self.sentence_length} tokens of a picture are nearly one (mean cosine {self.cosine:.3f}, effective "
            f"rank {self.effective_rank:.2f}, centred rank {self.centred_rank:.2f}): a sentence of one token would say "
            "as much"
        )

    def figures(self) -> dict[str, float]:
        """Return name -> number, for result files and logs."""
        found = {
            "cosine between tokens of a picture": self.cosine,
            "effective rank of a picture's tokens": self.effective_rank,
            "centred rank of a picture's tokens": self.centred_rank,
            "cosine of a token between pictures": self.cosine_between_pictures,
        }
        return found if self.overlap is None else found | {"attention that two tokens share": self.overlap}


def measure_diversity(tokens: NDArray[np.float32], maps: NDArray[np.float32] | None = None) -> TokenDiversity:
    """Measure the tokens of pictures.

    With u_il the unit vector of token l of picture i, and G_i the Gram matrix [L, L] of u_i1 ... u_iL, the effective
    rank is the mean over i of tr(G_i)^2 / tr(G_i^2). For the centred rank, u_il is the unit vector of
    t_il - mean_j t_jl, and zero where that difference is.

    Args:
        tokens: [n, L, D], n of at least 2, finite, no token of length 0.
        maps: [n, L, h, w], what they look at; see `measure_overlap`.

    Raises:
        TokensError: another shape, tokens without a direction, or maps that are none.
    """
    if tokens.ndim != 3 or len(tokens) < 2 or tokens.shape[1] < 1:
        raise TokensError(f"expected sentence tokens [n, L, D] of 2 or more pictures, got {list(tokens.shape)}")
    exact = tokens.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=2, keepdims=True)
    if not np.isfinite(exact).all() or not lengths.all():
        raise TokensError("expected finite sentence tokens of a length above 0, got others: check the encoder")
    units = exact / lengths
    gram = units @ units.transpose(0, 2, 1)  # [n, L, L]
    count = tokens.shape[1]
    pairs = count * (count - 1)
    cosines = (gram.sum(axis=(1, 2)) - count) / pairs if pairs else np.ones(len(tokens))  # [n]
    centred = exact - exact.mean(axis=0)
    distances = np.linalg.norm(centred, axis=2, keepdims=True)
    differ = distances > _LEAST_DIFFERENCE * lengths
    directions = np.where(differ, centred / np.where(differ, distances, 1.0), 0.0)
    return TokenDiversity(
        sentence_length=count,
        cosine=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        largest_cosine=float(cosines.max()),
        effective_rank=_mean_rank(gram),
        centred_rank=_mean_rank(directions @ directions.transpose(0, 2, 1)),
        cosine_between_pictures=float((units[1:] * units[:-1]).sum(axis=2).mean()),
        overlap=None if maps is None else measure_overlap(maps),
    )


def measure_overlap(maps: NDArray[np.float32]) -> float:
    """Measure the share of attention mass that two tokens of a picture have in common.

    It is the mean over pictures, and over pairs of tokens, of the sum over locations of the smaller weight: 0 where
    every token looks at locations of its own, 1 where all look at the same.

    Args:
        maps: [n, L, h, w], n of at least 1, weights of 0 or more; each map sums up to 1.

    Returns:
        The share; 1 for a single token.

    Raises:
        TokensError: another shape, or maps that do not sum up to 1.
    """
    if maps.ndim != 4 or 0 in maps.shape:
        raise TokensError(f"expected attention maps [n, L, h, w], got {list(maps.shape)}")
    weights = maps.reshape(*maps.shape[:2], -1).astype(np.float64)  # [n, L, h*w]
    # Written so that NaN is refused too.
    if not (weights.min() >= 0.0 and np.abs(weights.sum(axis=2) - 1.0).max() <= _SUM_TOLERANCE):
        raise TokensError("expected attention maps of weights that sum up to 1, got others: check the encoder")
    first, second = np.triu_indices(maps.shape[1], k=1)
    if not len(first):
        return 1.0
    return float(np.minimum(weights[:, first], weights[:, second]).sum(axis=2).mean())


def _mean_rank(gram: NDArray[np.float64]) -> float:
    """Return the mean participation ratio of Gram matrices [n, L, L]; that of a matrix of zeros is 0."""
    # (sum of eigenvalues)^2 / sum of their squares.
    traces, squares = np.trace(gram, axis1=1, axis2=2), (gram**2).sum(axis=(1, 2))
    return float((traces**2 / np.where(squares > 0.0, squares, 1.0)).mean())
