"""The one place where errors become gRPC status codes."""

import logging
import uuid
from dataclasses import dataclass

import grpc
from asymcir_common import TokensError
from asymcir_common.errors import RETRY_AFTER_KEY

from asymcir_server.errors import (
    DeadlineError,
    GalleryBuildError,
    GalleryNotFoundError,
    MessageSizeError,
    OverloadedError,
    PermissionDeniedError,
    RequestError,
    SpaceMismatchError,
    UnauthenticatedError,
    UnavailableError,
)

_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (TokensError, grpc.StatusCode.INVALID_ARGUMENT),
    (SpaceMismatchError, grpc.StatusCode.FAILED_PRECONDITION),
    (GalleryNotFoundError, grpc.StatusCode.NOT_FOUND),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (MessageSizeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (GalleryBuildError, grpc.StatusCode.ABORTED),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """What a caller is told.

    Attributes:
        code: the status code.
        message: one line.
        trailing_metadata: sent beside it.
    """

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str], ...] = ()


def to_status(error: Exception) -> Status:
    """Map an error; one that is not ours becomes INTERNAL with an id, and its traceback goes to the log only."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            hint: tuple[tuple[str, str], ...] = ()
            if isinstance(error, OverloadedError):
                hint = ((RETRY_AFTER_KEY, str(error.retry_after_ms)),)
            return Status(code, str(error), hint)
    error_id = uuid.uuid4().hex[:12]
    _log.error("internal error %s", error_id, exc_info=error)
    return Status(grpc.StatusCode.INTERNAL, f"internal error {error_id}: the server's log has the details")
