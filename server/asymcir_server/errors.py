"""Errors of the server package.

AsymcirError (asymcir_protos)
└── ServerError                  every error that this package adds
    ├── RequestError             a request that cannot be understood; INVALID_ARGUMENT on the wire
    │   └── ModifierError        a modifier that is too large or does not fit the text encoder's context
    ├── SpaceMismatchError       two sides that were not made for each other; FAILED_PRECONDITION
    ├── GalleryNotFoundError     no gallery of that name; NOT_FOUND
    ├── UnavailableError         the server is starting or draining; UNAVAILABLE
    ├── OverloadedError          too many requests in flight; RESOURCE_EXHAUSTED with a retry hint
    │   └── RateLimitError       a key's calls come faster than its rate; the same
    ├── MessageSizeError         a message larger than its service takes; RESOURCE_EXHAUSTED, as gRPC itself says
    ├── DeadlineError            the caller's deadline passed while the request waited; DEADLINE_EXCEEDED
    ├── GalleryBuildError        a gallery that cannot be built or changed as asked; ABORTED
    │   └── GalleryLockedError   another writer holds the gallery; ABORTED
    ├── UnauthenticatedError     no key, or a wrong one; UNAUTHENTICATED
    ├── PermissionDeniedError    a key of another role; PERMISSION_DENIED
    ├── KeysError                a file of keys that cannot be used
    └── ListenError              an address that cannot be listened on

Bundles and galleries that are missing or damaged raise `BundleError` of asymcir_protos.
"""

from asymcir_common import AsymcirError


class ServerError(AsymcirError):
    """Root of the errors that this package adds."""


class RequestError(ServerError):
    """The request cannot be understood: shapes, sizes, counts."""


class ModifierError(RequestError):
    """The modifier is larger than the limit, or does not fit the text encoder's context."""


class SpaceMismatchError(ServerError):
    """A word_space or target_space differs between two sides that must share it."""


class GalleryNotFoundError(ServerError):
    """The server holds no gallery of the name asked for."""


class UnavailableError(ServerError):
    """The server is starting or draining."""


class OverloadedError(ServerError):
    """More requests are in flight than the server admits.

    Attributes:
        retry_after_ms: how long a caller does well to wait.
    """

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class RateLimitError(OverloadedError):
    """The caller's key allows fewer calls a second."""


class MessageSizeError(ServerError):
    """The message is larger than its service takes."""


class DeadlineError(ServerError):
    """The caller's deadline passed before the request's turn came."""


class GalleryBuildError(ServerError):
    """The gallery cannot be built as asked: its sources, its folder, or its space."""


class GalleryLockedError(GalleryBuildError):
    """Another writer holds the gallery."""


class UnauthenticatedError(ServerError):
    """The caller sent no key, or one that is unknown."""


class PermissionDeniedError(ServerError):
    """The caller's key is of another role."""


class KeysError(ServerError):
    """The file of keys cannot be read or written as asked."""


class ListenError(ServerError):
    """The server cannot listen on the address asked for."""
