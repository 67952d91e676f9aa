"""Measuring: retrieval metrics, EmojiCIR triplets, and their evaluation through the exported bundles."""

from asymcir_benchmarks.emojicir.rules import Triplet, derive_triplets
from asymcir_benchmarks.retrieval.metrics import (
    Estimate,
    average_precision,
    bootstrap_interval,
    paired_difference,
    paired_ratio,
    precision_at,
    recall_at,
)

__all__ = [
    "Estimate",
    "Triplet",
    "average_precision",
    "bootstrap_interval",
    "derive_triplets",
    "paired_difference",
    "paired_ratio",
    "precision_at",
    "recall_at",
]
