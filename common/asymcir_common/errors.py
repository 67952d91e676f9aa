"""Errors that mean the same on both ends of the wire.

AsymcirError                 every error of ours; its text is one line that a user can act on
├── ImageError               not a picture, truncated, or not the shape asked for
├── BundleError              a bundle or gallery that is missing, damaged, or of another format
├── TokensError              sentence tokens that cannot be packed or unpacked
├── PlaceError               a folder, archive or list that pictures cannot be read from
└── FilterTextError          a filter's text that does not follow its grammar

The packages above derive their own from AsymcirError, so that the command needs one `except`.
"""

RETRY_AFTER_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata of a refused call: milliseconds after which it may be tried again; gRPC's own key for this."""


class AsymcirError(Exception):
    """Root of every error that asymcir raises on purpose."""


class ImageError(AsymcirError):
    """The input is not a picture that can be used."""


class BundleError(AsymcirError):
    """A bundle folder does not match its manifest, or is not the kind of folder asked for."""


class TokensError(AsymcirError):
    """Sentence tokens have the wrong shape, size or values."""


class PlaceError(AsymcirError):
    """Nothing is at a place that pictures should come from, or it cannot be read."""


class FilterTextError(AsymcirError):
    """The text of a filter does not follow its grammar.

    Attributes:
        pointed: two lines, to show below the message: the text, and a caret below the place.
    """

    def __init__(self, message: str, *, pointed: str) -> None:
        super().__init__(message)
        self.pointed = pointed
