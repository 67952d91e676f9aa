"""Build time: the frozen foundation, the light encoder, the UNION head, and how the last two are trained (torch)."""

from asymcir_training.checkpoints import load_light_encoder, load_union_head, save_light_encoder, save_union_head
from asymcir_training.errors import CheckpointError, DataError, FoundationError, TrainingError
from asymcir_training.foundation import Foundation, load_foundation
from asymcir_training.light import AdaptiveTokenLearner, LightEncoder
from asymcir_training.pictures import normalise_pixels
from asymcir_training.prompts import PROMPTS
from asymcir_training.union import UnionHead

__all__ = [
    "PROMPTS",
    "AdaptiveTokenLearner",
    "CheckpointError",
    "DataError",
    "Foundation",
    "FoundationError",
    "LightEncoder",
    "TrainingError",
    "UnionHead",
    "load_foundation",
    "load_light_encoder",
    "load_union_head",
    "normalise_pixels",
    "save_light_encoder",
    "save_union_head",
]
