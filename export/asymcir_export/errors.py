"""Errors of the export.

AsymcirError                 asymcir_protos: one line that a user can act on
└── ExportError              an artefact that cannot be written, or was written and is not what it was made from
    ├── ParityError          an artefact answers otherwise than the model it was made from
    └── TokenizerError       a tokenizer that cannot be written as `tokenizer.json`, or gives other ids there

Whatever is raised, no bundle is left behind.
"""

from asymcir_protos import AsymcirError


class ExportError(AsymcirError):
    """A model cannot be exported as asked."""


class ParityError(ExportError):
    """An exported model differs from its PyTorch original by more than its threshold."""


class TokenizerError(ExportError):
    """A tokenizer has no exact form in `tokenizer.json`."""
