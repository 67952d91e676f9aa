"""Proxies, messages above a limit, and copies of clients and encoders in other processes."""

import asyncio
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from asymcir_common import BundleError
from asymcir_edge import (
    AsyncRetrievalClient,
    Credentials,
    CredentialsError,
    DeviceBundle,
    GalleryAdmin,
    NewPicture,
    QueryEncoder,
    RequestRefusedError,
    RetrievalClient,
    ServerTimeoutError,
    ServerUnavailableError,
)
from asymcir_edge.remote.channels import find_proxy
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from tiny_device_bundle import make_encoder, write_device_bundle

TOKENS = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
ELSEWHERE = "203.0.113.5:50051"  # an address for documentation: nothing answers there


class Answering(retrieval_pb2_grpc.RetrievalServicer):
    def Search(self, request: Any, context: grpc.ServicerContext) -> Any:
        return retrieval_pb2.SearchResponse(gallery="main", hits=[retrieval_pb2.Hit(id=request.modifier)])

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:
        return retrieval_pb2.DescribeResponse(server_version="1")


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    retrieval_pb2_grpc.add_RetrievalServicer_to_server(Answering(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refusing_proxy() -> Iterator[str]:
    """A proxy that answers 403 to every CONNECT."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                asked, _ = listening.accept()
            except OSError:
                return
            with asked:
                asked.recv(4096)
                asked.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@pytest.mark.usefixtures("no_proxies")
def test_the_error_names_the_proxy(refusing_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:secret@{refusing_proxy}")
    with RetrievalClient(ELSEWHERE, timeout_s=5) as client, pytest.raises(ServerUnavailableError) as caught:
        client.describe()
    assert f"through the proxy http://{refusing_proxy} (of https_proxy)" in str(caught.value)
    assert "403" in str(caught.value) and "no_proxy" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("no_proxies")
def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with (
            RetrievalClient(ELSEWHERE, timeout_s=0.5) as client,
            pytest.raises(ServerTimeoutError, match=r"through the proxy http://127\.0\.0\.1:\d+ \(of http_proxy\)"),
        ):
            client.describe()


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(
    ("address", "variables", "expected"),
    [
        ("shop.example:1", {}, None),
        ("shop.example:1", {"http_proxy": "http://p:3128"}, "http://p:3128 (of http_proxy)"),
        ("shop.example:1", {"http_proxy": "http://a", "https_proxy": "http://b"}, "http://b (of https_proxy)"),
        ("shop.example:1", {"http_proxy": "http://a", "grpc_proxy": "http://c"}, "http://c (of grpc_proxy)"),
        ("shop.example:1", {"https_proxy": "https://b"}, None),  # gRPC cannot speak TLS with a proxy
        ("shop.example:1", {"http_proxy": "http://a", "no_proxy": "other, .EXAMPLE"}, None),
        ("shop.example:1", {"http_proxy": "http://a", "no_proxy": "x", "no_grpc_proxy": "shop.example"}, None),
        ("10.1.2.3:1", {"http_proxy": "http://a", "no_proxy": "10.0.0.0/8"}, None),
        ("11.1.2.3:1", {"http_proxy": "http://a", "no_proxy": "10.0.0.0/8"}, "http://a (of http_proxy)"),
        ("127.0.0.1:1", {"http_proxy": "http://a"}, None),
        ("[::1]:1", {"http_proxy": "http://a"}, None),
        ("unix:/run/a", {"http_proxy": "http://a"}, None),
    ],
)
def test_which_proxy_grpc_asks(
    address: str, variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(address) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"excluded_ids": ["x" * 1000] * 5000}, r"excluded_ids takes \d+ bytes of it, exclude fewer ids"),
        ({"modifier": "x" * 5_000_000}, r"modifier takes \d+ bytes of it, shorten the typed change"),
        ({"where": "a in (" + ", ".join(f'"{n:0500}"' for n in range(9000)) + ")"}, r"shorten the filter"),
    ],
)
def test_a_request_above_the_limit_says_what_to_shorten(address: str, changes: dict[str, Any], expected: str) -> None:
    with RetrievalClient(address) as client:
        with pytest.raises(RequestRefusedError, match=rf"the request is larger than {address} takes .*{expected}"):
            client.search(TOKENS, "space", **changes)

        async def search() -> None:
            async with AsyncRetrievalClient(address) as other:
                await other.search(TOKENS, "space", **changes)

        with pytest.raises(RequestRefusedError, match=expected):
            asyncio.run(search())


def test_a_client_is_pickled_to_other_processes(address: str) -> None:
    with (
        RetrievalClient(address, timeout_s=7, token_encoding="int8", credentials=Credentials(key="k")) as client,
        pickle.loads(pickle.dumps(client)) as copy,
    ):
        assert (copy.address, copy.timeout_s, copy.token_encoding) == (address, 7, "int8")
        assert copy.metadata == client.metadata
        program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).describe().server_version)"
        done = subprocess.run(
            [sys.executable, "-c", program], input=pickle.dumps(client), capture_output=True, timeout=60, check=True
        )
        assert done.stdout.strip() == b"1"
        assert copy.describe() == client.describe()


def test_a_client_that_cannot_reopen_says_so(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    with RetrievalClient("shop.example:1", credentials=Credentials(ca=ca)) as client:
        data = pickle.dumps(client)
    ca.unlink()
    with pytest.raises(CredentialsError, match=r"cannot read .*ca\.pem"):
        pickle.loads(data)


def test_a_client_of_a_loop_is_not_pickled() -> None:
    async def try_it() -> None:
        async with AsyncRetrievalClient("localhost:1") as client:
            with pytest.raises(TypeError, match="make one in each process"):
                pickle.dumps(client)

    asyncio.run(try_it())


def test_an_admin_is_pickled(address: str) -> None:
    with RetrievalClient(address) as client:
        copy = pickle.loads(pickle.dumps(GalleryAdmin(client, "main")))
        with pytest.raises(RequestRefusedError, match="no asymcir server"):  # which has no GalleryAdmin
            list(copy.add([NewPicture(id="a", image=b"")]))


def test_an_encoder_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = write_device_bundle(Path("device"))
    encoder = QueryEncoder(DeviceBundle.load(Path("device")), threads=2)
    data = pickle.dumps(encoder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    monkeypatch.chdir(os.sep)  # the folder was relative
    np.testing.assert_array_equal(pickle.loads(data).encode_image(pixels), encoder.encode_image(pixels))
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match="check the path"):
        pickle.loads(data)
    write_device_bundle(Path("device"), {"fp32": make_encoder(seed=5)})
    with pytest.raises(BundleError, match="another bundle than when the encoder was pickled"):
        pickle.loads(data)
