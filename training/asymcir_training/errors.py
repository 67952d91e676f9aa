"""Errors of the training package.

AsymcirError
└── TrainingError
    ├── FoundationError      a model, tag or checkpoint that cannot be had or cannot serve as a foundation
    ├── CheckpointError      a checkpoint folder that is missing, damaged or of another kind
    ├── DataError            pictures, phrases or triplets that cannot be trained on
    ├── CacheError           a teacher cache of another foundation or other pictures, damaged, or no room for it
    └── ConfigError          an unknown or ill-typed key of a training configuration
"""

from asymcir_common import AsymcirError


class TrainingError(AsymcirError):
    """Root of the training package's errors."""


class FoundationError(TrainingError):
    """The foundation cannot be loaded, or has a part that asymcir cannot use."""


class CheckpointError(TrainingError):
    """A checkpoint folder is missing, damaged or of another kind."""


class DataError(TrainingError):
    """The data cannot be trained on."""


class CacheError(TrainingError):
    """A teacher cache does not belong to this foundation and these pictures, is damaged, or does not fit the disk."""


class ConfigError(TrainingError):
    """A training configuration has an unknown key or a value of the wrong kind."""
