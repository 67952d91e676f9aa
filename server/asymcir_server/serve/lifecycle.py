"""A server's life: listen, warm up, serve, drain."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType

from asymcir_common.arguments import MAX_PORT, MAX_TIMEOUT_S
from asymcir_common.files import write_atomically
from asymcir_protos.v1 import retrieval_pb2
from google.protobuf.descriptor import ServiceDescriptor

from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.errors import ListenError
from asymcir_server.gallery import AnyGallery, Gallery, GalleryHolder, ShardedGallery
from asymcir_server.gallery.changes.following import FollowThread
from asymcir_server.serve.admin import MAX_PICTURE_MESSAGE_BYTES, GalleryAdminService
from asymcir_server.serve.http import HttpConfig, HttpServer
from asymcir_server.serve.http.app import make_app
from asymcir_server.serve.http.server import listen
from asymcir_server.serve.listening import UnixSocket, bind_port, join_address, probe_port
from asymcir_server.serve.rpc import GrpcServer
from asymcir_server.serve.rpc.calls import CallRules, make_handler
from asymcir_server.serve.security import Access, KeyStore, TlsConfig
from asymcir_server.serve.security.tls import is_loopback, make_grpc_credentials, make_http_context
from asymcir_server.serve.service import MAX_MESSAGE_BYTES, RetrievalService, ServiceLimits

_RETRIEVAL: ServiceDescriptor = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"]
_ADMIN: ServiceDescriptor = retrieval_pb2.DESCRIPTOR.services_by_name["GalleryAdmin"]
SERVICE_NAME, ADMIN_SERVICE_NAME = _RETRIEVAL.full_name, _ADMIN.full_name

_SPARE_THREADS = 4  # for refusals, Describe and health while every admitted request waits
_Folders = str | Path | Sequence[Path]
_HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where and how to serve.

    Attributes:
        host: address to listen on; loopback unless said otherwise.
        port: 0 takes a free one.
        unix_socket: the path of a Unix socket to answer gRPC on, instead of host and port, which HTTP keeps to; its
            permissions follow the process's umask.
        limits: per request, and how many.
        drain_timeout_s: how long requests in flight may take to end after the signal to stop.
        follow: answer from a new snapshot, and with changes made to one, while running.
        admin: offer the service GalleryAdmin too.
        http: answer over HTTP too; None: only gRPC.
        tls: certificates of both faces; None: plain text, on addresses of this machine only.
        metrics_port: answer `/metrics` for Prometheus on this port too, on `metrics_host`; None: over HTTP only.
        metrics_host: not encrypted and without a key, so an address that strangers do not reach.
        keys: a file of `asymcir keys`; None: whoever reaches the server may call.
        receive_timeout_s: how long a gRPC call may take to send its message; over HTTP that is `http`'s.
        allow_plaintext: listen without TLS on other addresses too, because something before the server does TLS.
    """

    host: str = "127.0.0.1"
    port: int = 0
    unix_socket: str | Path | None = None
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    drain_timeout_s: float = 30.0
    follow: bool = True
    admin: bool = False
    http: HttpConfig | None = None
    tls: TlsConfig | None = None
    keys: str | Path | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    receive_timeout_s: float = 20.0
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= MAX_PORT:
            raise ListenError(f"expected a port from 0 to {MAX_PORT}, got {self.port}")
        if not 0 <= self.drain_timeout_s <= MAX_TIMEOUT_S:
            raise ListenError(f"expected a drain timeout from 0 to {MAX_TIMEOUT_S:g} s, got {self.drain_timeout_s}")
        if is_loopback(self.host) or (self.unix_socket is not None and self.http is None):
            return
        if self.tls is None and not self.allow_plaintext:
            raise ListenError(
                f"{self.host} is reached from other machines, and nothing would be encrypted: pass --tls-certificate "
                "and --tls-key, or --allow-plaintext where a proxy before the server does TLS"
            )
        if self.admin and self.keys is None and (self.tls is None or self.tls.client_ca is None):
            raise ListenError(
                f"{self.host} is reached from other machines, and whoever reaches it could change the galleries: pass "
                "--keys or --tls-client-ca with --admin"
            )


class RetrievalServer:
    """A retrieval server in this process.

    As a context manager it serves from entry to exit:

        with RetrievalServer(bundle, {"emoji": gallery}) as server:
            client = RetrievalClient(server.address)

    Attributes:
        service: answers the requests.
        port: the one listened on; 0 before `start`, and with a Unix socket.
        http_port: the one of the HTTP face; 0 before `start`, or without it.
    """

    def __init__(
        self,
        bundle: ServerBundle,
        galleries: Mapping[str, AnyGallery | GalleryHolder],
        config: ServerConfig | None = None,
    ) -> None:
        """Prepare; nothing listens yet.

        Raises:
            BundleError, SpaceMismatchError, ListenError: bundle and galleries do not fit each other.
        """
        self._config = config or ServerConfig()
        self.service = RetrievalService(bundle, galleries, self._config.limits)
        self.port = self.http_port = 0
        self._access = Access(None if self._config.keys is None else KeyStore(self._config.keys))
        threads = self._config.limits.max_in_flight + _SPARE_THREADS
        self._pool = ThreadPoolExecutor(threads, "rpc")
        self._admin = GalleryAdminService(bundle, self.service) if self._config.admin else None
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None
        self._stop_metrics: Callable[[], None] | None = None
        self._socket: UnixSocket | None = None
        self._ready = False
        self._follow: FollowThread | None = None
        self._stopped = False

    @property
    def address(self) -> str:
        """Where clients connect: host:port, or unix:PATH."""
        if self._config.unix_socket is not None:
            return f"unix:{self._config.unix_socket}"
        return join_address(self._config.host, self.port)

    @property
    def http_address(self) -> str:
        """Where HTTP is answered: host:port."""
        return join_address(self._config.host, self.http_port)

    def start(self) -> int:
        """Listen, warm up, and report SERVING.

        Returns:
            The port; 0 with a Unix socket.

        Raises:
            ListenError: the address is in use or not ours.
        """
        grpc = self._grpc = self._make_grpc()
        try:
            if self._config.unix_socket is not None:
                self._socket = UnixSocket(Path(self._config.unix_socket))
                self._socket.bind(grpc, self._config.tls)
            else:
                self.port = bind_port(grpc, self._config.host, self._config.port, self._config.tls)
            if self._config.http is not None:
                self._http = self._start_http(self._config.http)
            if self._config.metrics_port is not None:
                self._stop_metrics = self.service.metrics.serve(self._config.metrics_host, self._config.metrics_port)
            grpc.start()
            self.service.warm_up()
        except BaseException:
            self.stop()
            raise
        self._ready = True
        grpc.set_serving(True)
        if self._config.follow:
            self._follow = FollowThread(self.service.followers)
        return self.port

    def stop(self) -> None:
        """Drain: report NOT_SERVING, refuse new requests, let those in flight end, then close."""
        if self._stopped:
            return
        self._stopped = True
        self._ready = False
        if self._grpc is not None:
            self._grpc.enter_graceful_shutdown()
        self.service.admission.drain()
        # Closing gRPC's server at once would cancel newcomers; while requests end they get the refusal that says why.
        started_s = time.monotonic()
        self.service.admission.wait_until_idle(self._config.drain_timeout_s)
        if self._http is not None:
            self._http.stop()
        if self._grpc is not None:
            self._grpc.stop(max(0.0, self._config.drain_timeout_s - (time.monotonic() - started_s)))
        if self._socket is not None:
            self._socket.remove()
        if self._stop_metrics is not None:
            self._stop_metrics()
        self._pool.shutdown(wait=False)
        self.service.close()
        if self._follow is not None:
            self._follow.close()
        for holder in self.service.holders.values():
            holder.close()

    def __enter__(self) -> "RetrievalServer":
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _start_http(self, config: HttpConfig) -> HttpServer:
        probe_port(self._config.host, config.port)
        listening = listen(self._config.host, config.port)
        self.http_port = int(listening.getsockname()[1])
        pool = ThreadPoolExecutor(self._config.limits.max_in_flight + _SPARE_THREADS, "http")
        app = make_app(self.service, self._admin, config, pool=pool, access=self._access, is_ready=lambda: self._ready)
        server = HttpServer(
            app,
            listening,
            pool,
            receive_timeout_s=config.receive_timeout_s,
            idle_timeout_s=config.idle_timeout_s,
            max_connections=config.max_connections,
            tls=None if self._config.tls is None else make_http_context(self._config.tls),
        )
        server.start()
        return server

    def _make_grpc(self) -> GrpcServer:
        rules = CallRules(
            access=self._access,
            metrics=self.service.metrics,
            max_bytes=MAX_MESSAGE_BYTES,
            receive_timeout_s=self._config.receive_timeout_s,
            check_room={"Search": self.service.admission.check_room},
        )
        handlers = [make_handler(_RETRIEVAL, self.service, self._pool, rules)]
        if self._admin is not None:
            rules = replace(rules, max_bytes=MAX_PICTURE_MESSAGE_BYTES, check_room={})
            handlers.append(make_handler(_ADMIN, self._admin, self._pool, rules))
        return GrpcServer(
            handlers,
            [SERVICE_NAME] if self._admin is None else [SERVICE_NAME, ADMIN_SERVICE_NAME],
            max_receive_bytes=rules.max_bytes,
            max_send_bytes=MAX_MESSAGE_BYTES,
        )


@contextmanager
def open_server(
    bundle_folder: str | Path, gallery_folders: Mapping[str, _Folders], config: ServerConfig, *, threads: int = 0
) -> Iterator[RetrievalServer]:
    """Load what a server needs; it does not listen before `start`.

    Args:
        bundle_folder: the server bundle.
        gallery_folders: name -> gallery, or the shards that make one.
        config: where and how.
        threads: threads inside one ONNX operator; 0: ONNX Runtime decides.

    Raises:
        BundleError, SpaceMismatchError, ListenError, KeysError: it cannot serve as asked.
    """
    if config.unix_socket is None:
        probe_port(config.host, config.port)  # before a large bundle is hashed for nothing
    else:
        UnixSocket(Path(config.unix_socket)).probe()
    galleries: dict[str, GalleryHolder] = {}
    try:
        bundle = ServerBundle.load(Path(bundle_folder), threads=threads)
        for name, folder in gallery_folders.items():
            galleries[name] = GalleryHolder(
                Gallery.open(folder, bundle.target_spaces)
                if isinstance(folder, str | Path)
                else ShardedGallery.open(folder, bundle.target_spaces)
            )
        server = RetrievalServer(bundle, galleries, config)
        try:
            yield server
        finally:
            server.stop()
    finally:
        for gallery in galleries.values():
            gallery.close()


def serve(
    bundle_folder: str | Path,
    gallery_folders: Mapping[str, _Folders],
    config: ServerConfig,
    *,
    threads: int = 0,
    port_file: str | Path | None = None,
    on_ready: Callable[[RetrievalServer], None] | None = None,
) -> None:
    """Load, serve until SIGTERM or SIGINT, drain, return. Call it from the main thread.

    Args:
        bundle_folder, gallery_folders, config, threads: see `open_server`.
        port_file: written with the port once the server is ready, removed at the end.
        on_ready: called once the server is ready.

    Raises:
        BundleError, SpaceMismatchError, ListenError, KeysError: it cannot serve as asked.
    """
    port_file = None if port_file is None else Path(port_file)
    stop = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, request_stop) for number in _HANDLED_SIGNALS}
    try:
        with open_server(bundle_folder, gallery_folders, config, threads=threads) as server:
            server.start()
            try:
                if port_file is not None:
                    _write_port(port_file, server.port)
                if on_ready is not None:
                    on_ready(server)
                stop.wait()
                _log.info("stopping: requests in flight have %g s to end", config.drain_timeout_s)
                server.stop()
            finally:
                if port_file is not None:
                    port_file.unlink(missing_ok=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_server(
    bundle_folder: str | Path, gallery_folders: Mapping[str, _Folders], config: ServerConfig, *, threads: int = 0
) -> RetrievalService:
    """Do all that a server does before it listens: load, open, compare spaces, read keys and certificates, search once.

    Arguments and errors are those of `open_server`.

    Returns:
        The service, closed, which says what would be served.
    """
    with open_server(bundle_folder, gallery_folders, config, threads=threads) as server:
        if config.tls is not None:
            make_grpc_credentials(config.tls)
            make_http_context(config.tls)
        server.service.warm_up()
        return server.service


def _write_port(path: Path, port: int) -> None:
    try:
        write_atomically(path, f"{port}\n")
    except OSError as exc:
        raise ListenError(f"cannot write the port file {path}: {exc.strerror}") from exc
