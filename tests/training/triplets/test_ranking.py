"""Recall during training, against a ranking written out by hand."""

import numpy as np
import pytest
import torch
from asymcir_training import DataError
from asymcir_training.triplets import ranking
from asymcir_training.triplets.ranking import measure_recall, rank_answers
from torch.nn import functional


def _naive(scores: np.ndarray, answers: list[list[int]], excluded: list[list[int]]) -> list[int]:
    ranks = []
    for row, right, out in zip(scores, answers, excluded, strict=True):
        places = [place for place in range(len(row)) if place not in out or place in right]
        order = sorted(places, key=lambda place: (-row[place], place in right))
        ranks.append(1 + min(order.index(place) for place in right))
    return ranks


def test_ranks_are_those_of_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # Whole numbers, so that inner products are exact and ties are ties.
    queries = torch.from_numpy(rng.integers(-9, 10, size=(40, 4)).astype(np.float32))
    gallery = torch.from_numpy(rng.integers(-9, 10, size=(30, 4)).astype(np.float32))
    gallery[20:] = gallery[:10]
    answers = [rng.choice(30, size=rng.integers(1, 4), replace=False).tolist() for _ in range(40)]
    excluded = [rng.choice(30, size=rng.integers(0, 5), replace=False).tolist() for _ in range(40)]
    expected = _naive((queries @ gallery.T).numpy(), answers, excluded)
    assert rank_answers(queries, gallery, answers, excluded).tolist() == expected
    monkeypatch.setattr(ranking, "_CHUNK_SCORES", 7 * 30)
    assert rank_answers(queries, gallery, answers, excluded).tolist() == expected
    found = measure_recall(queries, gallery, answers, excluded)
    assert found == pytest.approx({f"R@{k}": np.mean([rank <= k for rank in expected]) for k in (1, 5, 10)})
    assert 0.0 < found["R@1"] < found["R@10"] < 1.0


def test_a_collapsed_model_is_last_not_first() -> None:
    torch.manual_seed(0)
    one = functional.normalize(torch.randn(1, 96), dim=1)
    nearly = functional.normalize(one + 1e-8 * torch.randn(50, 96), dim=1)
    assert rank_answers(nearly, nearly, [[number] for number in range(50)]).tolist() == [50] * 50


def test_the_reference_is_left_out_unless_it_is_the_answer() -> None:
    gallery = torch.eye(3)
    query = torch.tensor([[1.0, 0.5, 0.0]])
    assert rank_answers(query, gallery, [[1]]).tolist() == [2]
    assert rank_answers(query, gallery, [[1]], [[0]]).tolist() == [1]
    assert rank_answers(query, gallery, [[0]], [[0]]).tolist() == [1]


def test_what_cannot_be_measured_is_said() -> None:
    eye = torch.eye(3)
    for arguments, expected in (
        ((eye, torch.eye(4), [[0]] * 3), "one width"),
        ((eye, eye, [[0]] * 2), "each of 3 queries, got 2"),
        ((eye, eye, [[0], [], [1]]), "a query without one"),
        ((eye, eye, [[0], [3], [1]]), "rows of a gallery of 3, got 0 to 3"),
        ((eye * torch.nan, eye, [[0]] * 3), "NaN"),
        ((eye[:0], eye, []), "got none"),
    ):
        with pytest.raises(DataError, match=expected):
            measure_recall(*arguments)  # type: ignore[arg-type]
