from .emojicir.rules import Triplet, derive_triplets
from .retrieval.metrics import (
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
