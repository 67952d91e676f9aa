import numpy as np
import pytest
from asymcir_common import TokensError
from asymcir_common.sentences import measure_diversity, measure_overlap
from numpy.typing import NDArray


def _naive(tokens: NDArray[np.float64]) -> tuple[float, float]:
    """Mean cosine and participation ratio of each picture by loops and eigenvalues."""
    cosines, ranks = [], []
    for sentence in tokens:
        units = np.stack([token / np.linalg.norm(token) for token in sentence])
        pairs = [units[i] @ units[j] for i in range(len(units)) for j in range(len(units)) if i != j]
        cosines.append(np.mean(pairs))
        values = np.linalg.eigvalsh(units @ units.T)
        ranks.append(values.sum() ** 2 / (values**2).sum())
    return float(np.mean(cosines)), float(np.mean(ranks))


def test_diversity_equals_a_naive_computation() -> None:
    tokens = np.random.default_rng(0).normal(0.3, 1.0, (5, 6, 16)).astype(np.float32)
    found = measure_diversity(tokens)
    exact = tokens.astype(np.float64)
    cosine, rank = _naive(exact)
    _, centred_rank = _naive(exact - exact.mean(axis=0))
    assert found.centred_rank == pytest.approx(centred_rank)
    assert found.cosine == pytest.approx(cosine) and found.effective_rank == pytest.approx(rank)
    assert found.least_cosine < found.cosine < found.largest_cosine < 0.9
    assert not found.collapsed and 1.0 < found.effective_rank < 6.0


def test_one_word_six_times_is_collapsed_and_orthogonal_tokens_are_not() -> None:
    words = np.random.default_rng(0).normal(size=(4, 1, 16)).astype(np.float32)
    same = measure_diversity(np.repeat(words, 6, axis=1) * np.arange(1, 7, dtype=np.float32)[None, :, None])
    assert same.collapsed and same.cosine == pytest.approx(1.0) and same.effective_rank == pytest.approx(1.0)
    turns = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 16, 16)))[0].astype(np.float32)
    assert not measure_diversity(turns[:, :6]).collapsed
    apart = measure_diversity(np.broadcast_to(np.eye(6, 16, dtype=np.float32), (4, 6, 16)))
    assert apart.cosine == pytest.approx(0.0) and apart.effective_rank == pytest.approx(6.0)
    assert apart.cosine_between_pictures == pytest.approx(1.0)  # every picture says the same six words


def test_tokens_that_differ_by_a_constant_alone_say_one_thing() -> None:
    rng = np.random.default_rng(0)
    constants, said = rng.normal(size=(1, 6, 64)), rng.normal(size=(8, 1, 64))
    found = measure_diversity((4.0 * constants + 0.3 * said).astype(np.float32))
    assert found.cosine < 0.5 and found.effective_rank > 3.0  # they look different
    assert found.centred_rank == pytest.approx(1.0, abs=1e-3) and found.collapsed
    assert "6 tokens of a picture are nearly one" in found.warning


def test_tokens_that_do_not_depend_on_the_picture_have_no_centred_rank() -> None:
    rng = np.random.default_rng(0)
    tokens = np.repeat(rng.normal(size=(1, 6, 16)), 5, axis=0).astype(np.float32)
    found = measure_diversity(tokens)
    assert found.centred_rank == 0.0 and found.effective_rank > 3.0 and found.collapsed
    tokens[:, 0] = rng.normal(size=(5, 16))
    assert measure_diversity(tokens).centred_rank == pytest.approx(1.0)


def test_how_far_from_one_word_is_enough_depends_on_the_length() -> None:
    def turned(length: int, cosine: float) -> NDArray[np.float32]:
        """Tokens whose pairs all have this cosine, of 200 pictures."""
        words = np.random.default_rng(0).normal(size=(200, length + 1, 512)) / np.sqrt(512)
        mixed = np.sqrt(cosine) * words[:, :1] + np.sqrt(1.0 - cosine) * words[:, 1:]
        return mixed.astype(np.float32)

    # (L + L (L - 1) c^2) is the sum of squares, so six tokens of cosine .775 have rank 1.5, two of .905 have 1.1.
    for length, cosine in ((6, 0.775), (2, 0.905)):
        below, above = (measure_diversity(turned(length, cosine + step)) for step in (0.03, -0.03))
        assert below.collapsed and not above.collapsed
        assert below.warning and not above.warning


def test_a_single_token_is_one_word() -> None:
    found = measure_diversity(np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32))
    assert (found.cosine, found.effective_rank) == (1.0, pytest.approx(1.0))
    assert found.centred_rank == pytest.approx(1.0) and not found.collapsed


def test_overlap_equals_a_naive_computation() -> None:
    maps = np.random.default_rng(0).random((3, 4, 5, 2)).astype(np.float32)
    maps /= maps.sum(axis=(2, 3), keepdims=True)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    naive = np.mean([[np.minimum(picture[i], picture[j]).sum() for i, j in pairs] for picture in maps])
    assert measure_overlap(maps) == pytest.approx(float(naive))
    tokens = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    assert measure_diversity(tokens, maps).figures()["attention that two tokens share"] == measure_overlap(maps)
    assert measure_diversity(tokens).overlap is None and len(measure_diversity(tokens).figures()) == 4


def test_maps_of_their_own_places_do_not_overlap_and_equal_ones_do() -> None:
    own = np.eye(4, dtype=np.float32).reshape(1, 4, 2, 2)
    assert measure_overlap(own) == 0.0
    assert measure_overlap(np.full((2, 3, 2, 2), 0.25, np.float32)) == pytest.approx(1.0)
    assert measure_overlap(own[:, :1]) == 1.0


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.ones((2, 3, 4), np.float32), r"expected attention maps \[n, L, h, w\], got \[2, 3, 4\]"),
        (np.ones((0, 3, 4, 4), np.float32), "attention maps"),
        (np.ones((2, 3, 4, 4), np.float32), "sum up to 1"),
        (np.full((2, 3, 1, 1), np.nan, np.float32), "sum up to 1"),
        (np.array([[[[1.5, -0.5]]]], np.float32), "sum up to 1"),
    ],
)
def test_what_is_no_attention_map_is_refused(maps: NDArray[np.float32], message: str) -> None:
    with pytest.raises(TokensError, match=message):
        measure_overlap(maps)


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
