import math

import numpy as np
import pytest
from asymcir_benchmarks import (
    average_precision,
    bootstrap_interval,
    paired_difference,
    paired_ratio,
    precision_at,
    recall_at,
)
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.retrieval.metrics import NOT_FOUND, ratio


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


def test_average_precision_of_a_case_done_by_hand() -> None:
    # Relevant at 1, 3 and 6: precisions 1/1, 2/3 and 3/6 there; one that never comes adds nothing but is counted.
    assert average_precision(np.array([1, 3, 6])) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert average_precision(np.array([6, 1, 3])) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert average_precision(np.array([1, 3, 6, NOT_FOUND])) == pytest.approx((1 + 2 / 3 + 1 / 2) / 4)
    assert average_precision(np.array([7])) == pytest.approx(1 / 7)
    assert math.isnan(average_precision(np.array([], dtype=np.int64)))


def test_precision_divides_by_the_cut() -> None:
    assert [precision_at(np.array([1, 3, 6]), k) for k in (1, 5, 10)] == [1.0, 0.4, 0.3]


def test_pairing_takes_out_what_both_share() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(400) < 0.5
    ours = theirs.copy()
    ours[np.flatnonzero(~theirs)[:20]] = True  # better on 20 queries, never worse
    found = paired_difference(ours.astype(float), theirs.astype(float))
    assert found.value == pytest.approx(0.05) and found.low > 0 and found.low < 0.05 < found.high
    # A share of 0.05 alone; two independent samples would be more than twice as wide.
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.05 * 0.95 / 400), rel=0.2)


def test_a_ratio_and_its_interval() -> None:
    ours, theirs = np.array([1.0, 0.0, 1.0, 1.0] * 50), np.array([1.0, 0.0, 1.0, 0.0] * 50)
    found = paired_ratio(ours, theirs)
    assert found.value == pytest.approx(1.5) and 1.0 < found.low < 1.5 < found.high < 2.2
    assert ratio(1.0, 0.0) == math.inf and math.isnan(ratio(0.0, 0.0))
    nothing = paired_ratio(ours, np.zeros(200))
    assert nothing.value == math.inf and math.isnan(nothing.low)


def test_figures_of_other_queries_are_not_paired() -> None:
    for compare in (paired_difference, paired_ratio):
        with pytest.raises(BenchmarkError, match=r"got \[3\] and \[4\]"):
            compare(np.ones(3), np.ones(4))
