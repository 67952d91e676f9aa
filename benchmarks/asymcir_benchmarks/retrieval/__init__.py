"""Retrieval metrics with intervals, ranks, and the evaluation of query systems on triplets.

`query_systems` and `triplets` need torch and are not imported here.
"""

from asymcir_benchmarks.retrieval.metrics import (
    Estimate,
    average_precision,
    bootstrap_interval,
    paired_difference,
    paired_ratio,
    precision_at,
    ratio,
    recall_at,
)
from asymcir_benchmarks.retrieval.ranking import Rankings, rank_all_relevant, rank_first_answer

__all__ = [
    "Estimate",
    "Rankings",
    "average_precision",
    "bootstrap_interval",
    "paired_difference",
    "paired_ratio",
    "precision_at",
    "rank_all_relevant",
    "rank_first_answer",
    "ratio",
    "recall_at",
]
