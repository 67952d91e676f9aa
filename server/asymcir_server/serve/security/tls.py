"""Certificates of both faces, read again when their files change."""

import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from asymcir_server.errors import ListenError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsConfig:
    """Files in PEM.

    Attributes:
        certificate: of the server, with those between it and the root after it.
        private_key: of the certificate, not encrypted.
        client_ca: clients must have a certificate that one of these signed; None: they need none.
    """

    certificate: str | Path
    private_key: str | Path
    client_ca: str | Path | None = None

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """Return certificate, key and client CA.

        Raises:
            ListenError: a file cannot be read, or the files do not belong together.
        """
        self.make_context()
        try:
            ca = None if self.client_ca is None else Path(self.client_ca).read_bytes()
            return Path(self.certificate).read_bytes(), Path(self.private_key).read_bytes(), ca
        except OSError as exc:
            raise ListenError(f"cannot read {exc.filename}: {exc.strerror}") from exc

    def make_context(self) -> ssl.SSLContext:
        """Make a context of TLS 1.2 or newer; raises what `read` raises."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.private_key, password="")
            if self.client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.client_ca)
        except OSError as exc:  # SSLError too
            files = ", ".join(str(path) for path in (self.certificate, self.private_key, self.client_ca) if path)
            raise ListenError(f"cannot use the certificate and key in {files}: {exc.strerror or exc}") from exc
        return context

    def stamp(self) -> tuple[int, ...]:
        """What changes when a file does."""
        paths = (self.certificate, self.private_key, self.client_ca)
        return tuple(
            path.stat().st_mtime_ns for path in (Path(name) for name in paths if name is not None) if path.exists()
        )


class _Changes:
    """Calls back when the files have changed and can be used."""

    def __init__(self, config: TlsConfig) -> None:
        self._config, self._lock = config, threading.Lock()
        self._stamp = config.stamp()

    def take(self) -> bool:
        """Return whether there are other files than before; files that cannot be used are logged and passed over."""
        with self._lock:
            stamp = self._config.stamp()
            if stamp == self._stamp:
                return False
            self._stamp = stamp
        try:
            self._config.read()
        except ListenError as exc:
            _log.error("the certificate stays as it was: %s", exc)
            return False
        _log.info("the certificate was read again")
        return True


def make_grpc_credentials(config: TlsConfig) -> grpc.ServerCredentials:
    """Make credentials that follow the files: connections of later get the new certificate."""
    changes = _Changes(config)

    def configuration() -> grpc.ServerCertificateConfiguration:
        certificate, private_key, ca = config.read()
        return grpc.ssl_server_certificate_configuration([(private_key, certificate)], root_certificates=ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return configuration() if changes.take() else None

    fetcher: Callable[[], grpc.ServerCertificateConfiguration] = fetch  # type: ignore[assignment]  # None: as before
    return grpc.dynamic_ssl_server_credentials(
        configuration(), fetcher, require_client_authentication=config.client_ca is not None
    )


def make_http_context(config: TlsConfig) -> ssl.SSLContext:
    """Make a context that follows the files."""
    changes, held = _Changes(config), [config.make_context()]
    first = held[0]

    def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if changes.take():
            held[0] = config.make_context()
        if held[0] is not first:
            connection.context = held[0]

    first.sni_callback = choose  # called for clients that name no host too
    return first


def is_loopback(host: str) -> bool:
    """The address is reached from this machine only. One that does not resolve is, too: nothing listens on it."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)
