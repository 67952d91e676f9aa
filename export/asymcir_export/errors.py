"""Errors of the export.

AsymcirError                 asymcir_protos: one line that a user can act on
└── ExportError              an artefact that cannot be written, or was written and is not what it was made from
    ├── ParityError          an artefact answers otherwise than the model it was made from
    ├── NotVerifiedError     an artefact holds something that the check cannot evaluate, so it does not pass
    └── TokenizerError       a tokenizer that cannot be written as `tokenizer.json`, or gives other ids there

Whatever is raised, no bundle is left behind.
"""

from asymcir_common import AsymcirError


class ExportError(AsymcirError):
    """A model cannot be exported as asked."""


class ParityError(ExportError):
    """An exported model differs from its PyTorch original by more than its threshold.

    Args:
        difference: what differs, and what to do about it; the message adds that nothing was written. What goes on
            without the model, or with another one, quotes `difference` alone.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(f"{difference}; nothing was written")
        self.difference = difference


class NotVerifiedError(ExportError):
    """A Core ML package holds something that its check cannot evaluate.

    Args:
        what: the operator's name, and in brackets what about it is unknown.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"not verified: {what}; the Core ML check does not know it, so the package does not pass")


class TokenizerError(ExportError):
    """A tokenizer has no exact form in `tokenizer.json`."""
