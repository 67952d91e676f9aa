"""What a client shows a server, and what it asks of the server's certificate."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from asymcir_edge.errors import CredentialsError

_AUTHORIZATION = "authorization"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """How a connection is made.

    Attributes:
        key: of `asymcir keys create`; empty for none.
        tls: encrypt, and check the server's certificate. Implied by the files below.
        ca: certificates that the server's must be signed by, PEM; None: those that gRPC brings.
        certificate: of this client, PEM, where the server asks for one.
        private_key: of the certificate, PEM.
        allow_plaintext_key: send the key over a connection that is not encrypted, to another machine.
    """

    key: str = ""
    tls: bool = False
    ca: str | Path | None = None
    certificate: str | Path | None = None
    private_key: str | Path | None = None
    allow_plaintext_key: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise CredentialsError("expected certificate and private_key together, got one of them")
        if not (self.key.isascii() and self.key.isprintable()):
            raise CredentialsError("expected a key as `asymcir keys create` prints it, on one line")

    @property
    def encrypted(self) -> bool:
        """The connection is encrypted."""
        return self.tls or self.ca is not None or self.certificate is not None

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Return gRPC's credentials; None for plain text.

        Raises:
            CredentialsError: a file cannot be read.
        """
        if not self.encrypted:
            return None
        try:
            read = [Path(path).read_bytes() if path else None for path in (self.ca, self.private_key, self.certificate)]
        except OSError as exc:
            raise CredentialsError(f"cannot read {exc.filename}: {exc.strerror}") from exc
        return grpc.ssl_channel_credentials(*read)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what is sent with every call."""
        return ((_AUTHORIZATION, f"Bearer {self.key}"),) if self.key else ()

    def check_address(self, address: str) -> None:
        """Refuse to send the key where others can read it.

        Raises:
            CredentialsError: the connection would not be encrypted, and the address is not of this machine.
        """
        if self.key and not self.encrypted and not self.allow_plaintext_key and not _is_local(address):
            raise CredentialsError(
                f"the key would travel to {address} unencrypted: connect with TLS, or set allow_plaintext_key"
            )


def read_key(path: str | Path) -> str:
    """Read a key from a file.

    Raises:
        CredentialsError: it cannot be read.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CredentialsError(f"cannot read a key from {path}: {exc}") from exc


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
