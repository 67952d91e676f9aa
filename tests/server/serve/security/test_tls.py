"""TLS on both faces: right and wrong certificates, both ways, and certificates that are renewed."""

import contextlib
import datetime
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from asymcir_edge import Credentials, RetrievalClient, ServerUnavailableError
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from asymcir_server.errors import ListenError
from asymcir_server.serve.http import HttpConfig
from asymcir_server.serve.security import TlsConfig

Serve = Callable[..., RetrievalServer]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def write_certificate(folder: Path, leaf: trustme.LeafCert, name: str = "server") -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    leaf.private_key_pem.write_to_path(str(key))
    for number, blob in enumerate(leaf.cert_chain_pems):
        blob.write_to_path(str(certificate), append=number > 0)
    return certificate, key


def write_ca(folder: Path, ca: trustme.CA, name: str = "ca") -> Path:
    path = folder / f"{name}.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def serve(bundle: ServerBundle, gallery: Gallery, tmp_path: Path) -> Iterator[Serve]:
    started: list[RetrievalServer] = []

    def start(leaf: trustme.LeafCert, client_ca: Path | None = None) -> RetrievalServer:
        certificate, key = write_certificate(tmp_path, leaf)
        tls = TlsConfig(certificate=certificate, private_key=key, client_ca=client_ca)
        server = RetrievalServer(bundle, {"noise": gallery}, ServerConfig(tls=tls, http=HttpConfig()))
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


def ask_grpc(server: RetrievalServer, **files: Path) -> str:
    with RetrievalClient(server.address, timeout_s=4, credentials=Credentials(**files)) as client:  # type: ignore[arg-type]
        return client.describe().galleries[0].name


def ask_https(server: RetrievalServer, ca: Path, client: tuple[Path, Path] | None = None) -> int:
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(*client)
    connection = http.client.HTTPSConnection("127.0.0.1", server.http_port, context=context, timeout=10)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_good_certificate_on_both_faces(serve: Serve, ca: trustme.CA, tmp_path: Path) -> None:
    server = serve(ca.issue_cert("127.0.0.1"))
    trusted = write_ca(tmp_path, ca)
    assert ask_grpc(server, ca=trusted) == "noise"
    assert ask_https(server, trusted) == 200


def test_no_downgrade_to_plain_text(serve: Serve, ca: trustme.CA, tmp_path: Path) -> None:
    server = serve(ca.issue_cert("127.0.0.1"))
    with RetrievalClient(server.address, timeout_s=4) as client, pytest.raises(ServerUnavailableError):
        client.describe()
    for port in (server.port, server.http_port):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"200" not in plain.recv(100)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(write_ca(tmp_path, ca))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("kind", ["expired", "of another name", "self-signed"])
def test_clients_refuse_a_wrong_certificate(serve: Serve, ca: trustme.CA, tmp_path: Path, kind: str) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    leaf = {
        "expired": lambda: ca.issue_cert("127.0.0.1", not_before=past - datetime.timedelta(days=1), not_after=past),
        "of another name": lambda: ca.issue_cert("shop.example"),
        "self-signed": lambda: trustme.CA().issue_cert("127.0.0.1"),
    }[kind]()
    server = serve(leaf)
    trusted = write_ca(tmp_path, ca)
    with pytest.raises(ServerUnavailableError, match="no TLS connection"):
        ask_grpc(server, ca=trusted)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask_https(server, trusted)


def test_mutual_tls(serve: Serve, ca: trustme.CA, tmp_path: Path) -> None:
    trusted = write_ca(tmp_path, ca)
    server = serve(ca.issue_cert("127.0.0.1"), client_ca=trusted)
    mine = write_certificate(tmp_path, ca.issue_cert("phone.example"), "mine")
    stranger = write_certificate(tmp_path, trustme.CA().issue_cert("phone.example"), "stranger")
    assert ask_grpc(server, ca=trusted, certificate=mine[0], private_key=mine[1]) == "noise"
    assert ask_https(server, trusted, mine) == 200
    with pytest.raises(ServerUnavailableError):
        ask_grpc(server, ca=trusted)
    with pytest.raises(ServerUnavailableError):
        ask_grpc(server, ca=trusted, certificate=stranger[0], private_key=stranger[1])
    for client in (None, stranger):
        with pytest.raises((OSError, http.client.HTTPException)):
            ask_https(server, trusted, client)


def test_a_renewed_certificate_is_used_without_a_restart(serve: Serve, ca: trustme.CA, tmp_path: Path) -> None:
    server = serve(trustme.CA().issue_cert("127.0.0.1"))
    trusted = write_ca(tmp_path, ca)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask_https(server, trusted)
    (tmp_path / "server.key").write_text("half a fi")
    with pytest.raises(ssl.SSLCertVerificationError):  # a file that cannot be used leaves the old one
        ask_https(server, trusted)
    write_certificate(tmp_path, ca.issue_cert("127.0.0.1"))
    assert ask_https(server, trusted) == 200
    assert ask_grpc(server, ca=trusted) == "noise"


def test_files_that_cannot_be_used(bundle: ServerBundle, gallery: Gallery, ca: trustme.CA, tmp_path: Path) -> None:
    certificate, _ = write_certificate(tmp_path, ca.issue_cert("127.0.0.1"))
    _, other = write_certificate(tmp_path, ca.issue_cert("127.0.0.1"), "other")
    for key in (other, tmp_path / "nothing"):
        tls = TlsConfig(certificate=certificate, private_key=key)
        server = RetrievalServer(bundle, {"noise": gallery}, ServerConfig(tls=tls))
        with pytest.raises(ListenError, match="cannot use the certificate"):
            server.start()
        server.stop()
