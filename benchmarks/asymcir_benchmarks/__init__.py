"""Measuring: retrieval metrics, EmojiCIR triplets, and their evaluation through the exported bundles."""

from asymcir_benchmarks.emojicir import Triplet, derive_triplets
from asymcir_benchmarks.metrics import bootstrap_interval, recall_at

__all__ = ["Triplet", "bootstrap_interval", "derive_triplets", "recall_at"]
