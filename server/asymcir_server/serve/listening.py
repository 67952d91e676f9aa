"""Addresses that a server listens on: ports, and Unix sockets."""

import errno
import os
import socket
import stat
from pathlib import Path

from asymcir_server.errors import ListenError
from asymcir_server.serve.rpc import GrpcServer
from asymcir_server.serve.security import TlsConfig
from asymcir_server.serve.security.tls import make_grpc_credentials

_MAX_SOCKET_PATH_BYTES = 103
"""What the address of a Unix socket holds on macOS; Linux takes four more."""


class UnixSocket:
    """The file of a Unix socket that gRPC is answered on.

    gRPC replaces a socket that another server listens on without a word, so this looks first.

    Args:
        path: the file; what a server that was killed left there is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mine: tuple[int, int] | None = None

    def probe(self) -> None:
        """Check that a server can listen here.

        Raises:
            ListenError: another one does, or something else is there, or the path cannot be used.
        """
        path = self._path
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
            raise ListenError(
                f"the Unix socket's path {path} has more than {_MAX_SOCKET_PATH_BYTES} bytes: choose a shorter one"
            )
        if not path.parent.is_dir():
            raise ListenError(f"there is no folder {path.parent} to make the Unix socket {path.name} in: make it first")
        if not os.access(path.parent, os.W_OK):
            raise ListenError(f"cannot make a Unix socket in {path.parent}: no permission to write there")
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ListenError(f"{path} exists and is no Unix socket: choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:  # left by a server that was killed
                return
            except OSError as exc:
                raise ListenError(f"cannot use the Unix socket {path}: {exc.strerror}") from exc
        raise ListenError(f"another server listens on the Unix socket {path}: stop it, or choose another path")

    def bind(self, server: GrpcServer, tls: TlsConfig | None) -> None:
        """Let a server listen here; raises what `probe` raises."""
        self.probe()
        self._path.unlink(missing_ok=True)
        _add_address(server, f"unix:{self._path}", tls)
        found = self._path.stat()
        self._mine = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove the file, unless another server's has taken its place."""
        try:
            found = self._path.lstat()
        except FileNotFoundError:  # gRPC removes it too
            return
        if (found.st_dev, found.st_ino) == self._mine:
            self._path.unlink(missing_ok=True)


def join_address(host: str, port: int) -> str:
    """Return host:port, with brackets around the host where it is of IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_port(server: GrpcServer, host: str, port: int, tls: TlsConfig | None) -> int:
    """Let a server listen on a port, and return it.

    Raises:
        ListenError: the address is in use or not ours.
    """
    probe_port(host, port)
    return _add_address(server, join_address(host, port), tls)


def probe_port(host: str, port: int) -> None:
    """Try the address with a plain socket, whose errors say why; gRPC's only say that.

    Raises:
        ListenError: the address is in use or not ours.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)  # two sockets may bind one port with SO_REUSEADDR; only one of them can listen
    except socket.gaierror as exc:
        raise ListenError(
            f"cannot listen on {host}: {exc.strerror}; pass an address of this machine as --host"
        ) from exc
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ListenError(
                f"port {port} on {host} is in use: stop what holds it, choose another --port, or 0 for a free one"
            ) from exc
        raise ListenError(f"cannot listen on {host}:{port}: {os.strerror(exc.errno or 0)}") from exc


def _add_address(server: GrpcServer, address: str, tls: TlsConfig | None) -> int:
    try:
        bound = server.bind(address, None if tls is None else make_grpc_credentials(tls))
    except RuntimeError as exc:  # taken between the probe and now
        raise ListenError(f"cannot listen on {address}: choose another --port, or 0 for a free one") from exc
    if bound == 0:
        raise ListenError(f"cannot listen on {address}: choose another --port, or 0 for a free one")
    return bound
