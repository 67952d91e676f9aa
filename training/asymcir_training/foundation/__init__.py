"""The frozen vision-language foundation: open_clip and BLIP models, their text towers, tokenizers and digests."""

from asymcir_training.foundation.creation import (
    load_trunk_weights,
    save_weights,
    write_foundation,
    write_initial_foundation,
)
from asymcir_training.foundation.digests import digest
from asymcir_training.foundation.model import Foundation, load_foundation, visual_facts
from asymcir_training.foundation.preprocessing import imagenet_preprocessing, normalise_pixels

__all__ = [
    "Foundation",
    "digest",
    "imagenet_preprocessing",
    "load_foundation",
    "load_trunk_weights",
    "normalise_pixels",
    "save_weights",
    "visual_facts",
    "write_foundation",
    "write_initial_foundation",
]
