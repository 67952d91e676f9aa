"""What can go wrong on the device.

AsymcirError (asymcir_protos)
├── EncoderError               the bundle's encoder cannot be opened or run, or is not what its manifest says
├── OutputError                a file that the command was to write stands in the way
├── AddressError               a server address that is not HOST:PORT
├── CredentialsError           a key or certificate that cannot be used, or would be sent unencrypted
└── ServerError                the server gave no answer
    ├── ServerUnavailableError no server there, or it is starting or draining: try again later
    ├── ServerTimeoutError     no answer within the time allowed
    ├── SpaceMismatchError     device, server and gallery were not made for each other: update one of them
    ├── ServerOverloadedError  the server is full: wait, `retry_after_s` where the server says so
    ├── AccessDeniedError      no key, a wrong one, or one of another role
    ├── RequestRefusedError    the request is refused: change it
    └── ServerFailedError      the server failed: its log says more
"""

from asymcir_common import AsymcirError


class EncoderError(AsymcirError):
    """The encoder of a device bundle cannot be used."""


class OutputError(AsymcirError):
    """An output file exists already, or its folder does not."""


class AddressError(AsymcirError):
    """A server address is not HOST:PORT."""


class CredentialsError(AsymcirError):
    """A key or certificate cannot be used, or the key would be sent unencrypted."""


class ServerError(AsymcirError):
    """Root of the errors of a call to a server.

    Attributes:
        retry_after_s: when to try again, where the server says so.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerUnavailableError(ServerError):
    """No server answers, or it cannot take the call now."""


class ServerTimeoutError(ServerError):
    """The server did not answer within the time allowed."""


class SpaceMismatchError(ServerError):
    """The two sides work in different spaces."""


class ServerOverloadedError(ServerError):
    """The server has more requests than it takes: the same request is answered later."""


class AccessDeniedError(ServerError):
    """The server asks for a key, or for one that may do this."""


class RequestRefusedError(ServerError):
    """The request is not one that this server answers."""


class ServerFailedError(ServerError):
    """The server failed while it answered."""
