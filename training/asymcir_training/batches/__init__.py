"""The batches of a run: which pictures can be read, how they are seen, and what decodes and augments them in time.

Feeds are deterministic: a run that resumes at step k sees the batches that it would have seen.
"""

from asymcir_training.batches.feeds import Feed, RowFeed
from asymcir_training.batches.loader import Batch, iterate_batches
from asymcir_training.batches.scan import PassProgress, Quarantine, Scan, only_one_process, scan_pictures
from asymcir_training.batches.views import Augmentation, batch_at
from asymcir_training.batches.workers import run_jobs

__all__ = [
    "Augmentation",
    "Batch",
    "Feed",
    "PassProgress",
    "Quarantine",
    "RowFeed",
    "Scan",
    "batch_at",
    "iterate_batches",
    "only_one_process",
    "run_jobs",
    "scan_pictures",
]
