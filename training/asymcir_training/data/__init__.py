"""Pictures to train on: where they come from, which can be read, and the batches of a run."""

from asymcir_training.data.loader import Batch, iterate_batches
from asymcir_training.data.scan import Scan, scan_pictures
from asymcir_training.data.sources import ArrayPictures, Pictures, open_pictures

__all__ = ["ArrayPictures", "Batch", "Pictures", "Scan", "iterate_batches", "open_pictures", "scan_pictures"]
