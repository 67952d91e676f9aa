import numpy as np
import pytest
from asymcir_common import TokensError
from asymcir_common.sentences import COLLAPSED_COSINE, measure_diversity
from numpy.typing import NDArray


def _naive(tokens: NDArray[np.float32]) -> tuple[float, float]:
    """Mean cosine and participation ratio of each picture by loops and eigenvalues."""
    cosines, ranks = [], []
    for sentence in tokens.astype(np.float64):
        units = np.stack([token / np.linalg.norm(token) for token in sentence])
        pairs = [units[i] @ units[j] for i in range(len(units)) for j in range(len(units)) if i != j]
        cosines.append(np.mean(pairs))
        values = np.linalg.eigvalsh(units @ units.T)
        ranks.append(values.sum() ** 2 / (values**2).sum())
    return float(np.mean(cosines)), float(np.mean(ranks))


def test_diversity_equals_a_naive_computation() -> None:
    tokens = np.random.default_rng(0).normal(0.3, 1.0, (5, 6, 16)).astype(np.float32)
    found = measure_diversity(tokens)
    cosine, rank = _naive(tokens)
    assert found.cosine == pytest.approx(cosine) and found.effective_rank == pytest.approx(rank)
    assert found.least_cosine < found.cosine < found.largest_cosine < COLLAPSED_COSINE
    assert not found.collapsed and 1.0 < found.effective_rank < 6.0


def test_one_word_six_times_is_collapsed_and_orthogonal_tokens_are_not() -> None:
    words = np.random.default_rng(0).normal(size=(4, 1, 16)).astype(np.float32)
    same = measure_diversity(np.repeat(words, 6, axis=1) * np.arange(1, 7, dtype=np.float32)[None, :, None])
    assert same.collapsed and same.cosine == pytest.approx(1.0) and same.effective_rank == pytest.approx(1.0)
    apart = measure_diversity(np.broadcast_to(np.eye(6, 16, dtype=np.float32), (4, 6, 16)))
    assert not apart.collapsed and apart.cosine == pytest.approx(0.0) and apart.effective_rank == pytest.approx(6.0)
    assert apart.cosine_between_pictures == pytest.approx(1.0)  # every picture says the same six words


def test_a_single_token_is_one_word() -> None:
    found = measure_diversity(np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32))
    assert (found.cosine, found.effective_rank) == (1.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.ones((6, 8), np.float32), r"expected sentence tokens \[n, L, D\] of 2 or more pictures, got \[6, 8\]"),
        (np.ones((1, 6, 8), np.float32), "2 or more pictures"),
        (np.zeros((2, 6, 8), np.float32), "length above 0"),
        (np.full((2, 6, 8), np.nan, np.float32), "finite"),
    ],
)
def test_what_is_no_sentence_is_refused(tokens: NDArray[np.float32], message: str) -> None:
    with pytest.raises(TokensError, match=message):
        measure_diversity(tokens)
