"""Ranks of the right answers in a gallery held in memory, for validation during training and for `asymcir eval`.

Notation: t queries, N gallery size, E joint-embedding width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from asymcir_training.errors import DataError

CUTS = (1, 5, 10)
TIE = 1e-6
"""Scores that lie no further apart are the same: what rounding does to inner products of float32 unit vectors."""

_CHUNK_SCORES = 2**26  # scores in memory at a time: 256 MB


@torch.no_grad()
def rank_answers(
    queries: Tensor,
    gallery: Tensor,
    answers: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Rank the best placed right answer of each query by inner product.

    A wrong item that scores the same as the answer stands before it: a model that gives every picture one embedding
    must not look perfect.

    Args:
        queries: [t, E], L2-normalised.
        gallery: [N, E], L2-normalised.
        answers: t lists of rows of the gallery, one or more each, any of which is right.
        excluded: t lists of rows that are taken out of the gallery for that query; an answer stays in.

    Returns:
        [t], int64, from 1, on the CPU.

    Raises:
        DataError: shapes that do not belong together, a query without an answer, or an embedding that is not finite.
    """
    count = len(queries)
    excluded = excluded if excluded is not None else [()] * count
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(
            f"expected queries [t, E] and a gallery [N, E] of one width, got {list(queries.shape)} and "
            f"{list(gallery.shape)}"
        )
    if len(answers) != count or len(excluded) != count:
        raise DataError(
            f"expected answers and excluded rows for each of {count} queries, got {len(answers)} and {len(excluded)}"
        )
    # NaN compares as no better than anything, which would rank such an answer first.
    if not (torch.isfinite(queries).all() and torch.isfinite(gallery).all()):
        raise DataError("expected finite embeddings, got NaN or infinity: the model that made them has diverged")
    size = max(1, _CHUNK_SCORES // max(1, len(gallery)))
    found = [
        _rank_chunk(
            queries[start : start + size], gallery, answers[start : start + size], excluded[start : start + size]
        )
        for start in range(0, count, size)
    ]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def measure_recall(
    queries: Tensor,
    gallery: Tensor,
    answers: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]] | None = None,
) -> dict[str, float]:
    """Return "R@1", "R@5", "R@10": the share of queries with a right answer among the first so many.

    Arguments and errors are those of `rank_answers`.

    Raises:
        DataError: see `rank_answers`; or no query.
    """
    ranks = rank_answers(queries, gallery, answers, excluded)
    if not len(ranks):
        raise DataError("expected 1 or more queries to measure recall with, got none")
    return {f"R@{cut}": float((ranks <= cut).float().mean()) for cut in CUTS}


def _rank_chunk(
    queries: Tensor, gallery: Tensor, answers: Sequence[Sequence[int]], excluded: Sequence[Sequence[int]]
) -> Tensor:
    scores = queries @ gallery.T  # [c, N]
    right = _mark(answers, scores)
    if not bool(right.any(dim=1).all()):
        raise DataError("expected a right answer for every query, got a query without one: leave it out")
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # [c, 1]
    rivals = ~(right | _mark(excluded, scores))
    return ((scores >= best - TIE) & rivals).sum(dim=1).cpu() + 1


def _mark(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Make [c, N] bool, true at each query's rows."""
    marked = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    queries = [number for number, places in enumerate(rows) for _ in places]
    places = [place for found in rows for place in found]
    if places and not 0 <= min(places) <= max(places) < like.shape[1]:
        raise DataError(
            f"expected rows of a gallery of {like.shape[1]}, got {min(places)} to {max(places)}: of another gallery?"
        )
    marked[torch.tensor(queries, dtype=torch.int64), torch.tensor(places, dtype=torch.int64)] = True
    return marked
