import math

import numpy as np
from asymcir_benchmarks import bootstrap_interval, recall_at
from asymcir_benchmarks.metrics import NOT_FOUND


def test_recall_counts_the_queries_answered_within_the_cut() -> None:
    ranks = np.array([1, 2, 6, NOT_FOUND, 10])
    assert [recall_at(ranks, k) for k in (1, 5, 10)] == [0.2, 0.4, 0.8]
    assert math.isnan(recall_at(np.array([], dtype=np.int64), 1))


def test_the_interval_holds_the_mean_and_narrows_with_more_queries() -> None:
    rng = np.random.default_rng(0)
    few, many = (rng.random(n) < 0.4 for n in (50, 5000))
    narrow, wide = bootstrap_interval(many.astype(float)), bootstrap_interval(few.astype(float))
    assert narrow[0] < many.mean() < narrow[1]
    assert narrow[1] - narrow[0] < 0.2 * (wide[1] - wide[0])
    # The normal approximation of a share's interval, as an independent check.
    assert math.isclose(narrow[1] - narrow[0], 2 * 1.96 * math.sqrt(0.4 * 0.6 / 5000), rel_tol=0.15)
