"""The stages of `asymcir train`: each from its configuration to the folder that it writes.

Every stage runs on one process or, under torchrun, on many; the main one reads the large towers' outputs into the
cache and writes the result.
"""

from asymcir_training.stages.distil import train_distil
from asymcir_training.stages.foundation import train_foundation
from asymcir_training.stages.union import train_union

__all__ = ["train_distil", "train_foundation", "train_union"]
