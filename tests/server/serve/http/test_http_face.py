"""Health, thumbnails, files, CORS, and connections that do not behave."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from asymcir_edge import AddressError, CredentialsError, ServerUnavailableError
from asymcir_edge.explain import fetch_thumbnails
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig, build_gallery
from asymcir_server.errors import ListenError
from asymcir_server.gallery import BuildConfig
from asymcir_server.serve.http import HttpConfig

SEARCH, DESCRIBE = "/asymcir.v1.Retrieval/Search", "/asymcir.v1.Retrieval/Describe"
ORIGIN = "https://shop.example"
Ask = Callable[..., http.client.HTTPResponse]


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, bundle: ServerBundle
) -> Iterator[RetrievalServer]:
    place = tmp_path_factory.mktemp("face")
    build_gallery(pictures, bundle, place / "noise", config=BuildConfig(thumbnail_side=16))
    for name, text in (("device/manifest.json", "{}"), ("web/index.html", "<p>page"), ("secret.txt", "no")):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    gallery = Gallery.open(place / "noise", bundle.target_spaces)
    config = HttpConfig(
        allowed_origins=(ORIGIN,), device_bundle=place / "device", web_folder=place / "web", receive_timeout_s=0.5,
        idle_timeout_s=1.0,
    )  # fmt: skip
    with RetrievalServer(bundle, {"noise": gallery}, ServerConfig(http=config)) as server:
        yield server
    gallery.close()


@pytest.fixture
def ask(running: RetrievalServer) -> Iterator[Ask]:
    connection = http.client.HTTPConnection("127.0.0.1", running.http_port, timeout=20)

    def send(method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        answer.text = answer.read()  # type: ignore[attr-defined]
        return answer

    yield send
    connection.close()


def open_socket(running: RetrievalServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.http_port), timeout=20)


def test_health_and_readiness(ask: Ask, bundle: ServerBundle, gallery: Gallery) -> None:
    assert ask("GET", "/healthz").status == ask("GET", "/readyz").status == 200
    server = RetrievalServer(bundle, {"noise": gallery}, ServerConfig(http=HttpConfig()))
    server.start()
    server._ready = False
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port)
    connection.request("GET", "/readyz")
    assert connection.getresponse().status == 503
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.http_port))


def test_describe_in_json_as_curl_asks(ask: Ask) -> None:
    answer = ask("POST", DESCRIBE, b"{}", content_type="application/json")
    assert answer.status == 200
    assert json.loads(answer.text)["galleries"][0]["name"] == "noise"  # type: ignore[attr-defined]


def test_thumbnails_are_webp_and_are_sent_once(ask: Ask) -> None:
    answer = ask("GET", "/thumbnails/noise/left/01.png")
    assert answer.status == 200 and answer.getheader("content-type") == "image/webp"
    assert answer.text[:4] == b"RIFF" and "max-age" in str(answer.getheader("cache-control"))  # type: ignore[attr-defined]
    again = ask("GET", "/thumbnails/noise/left/01.png", if_none_match=str(answer.getheader("etag")))
    assert again.status == 304 and again.text == b""  # type: ignore[attr-defined]
    for path in ("/thumbnails/noise/left/99.png", "/thumbnails/other/left/01.png", "/thumbnails/noise/%ff%00"):
        assert ask("GET", path).status == 404
    assert ask("POST", "/thumbnails/noise/left/01.png", b"").status == 405


def test_what_explain_fetches_of_them(running: RetrievalServer) -> None:
    url = f"http://127.0.0.1:{running.http_port}"
    found = fetch_thumbnails(url, "noise", ["left/01.png", "left/99.png", "left/01.png"])
    assert list(found) == ["left/01.png"] and found["left/01.png"][:4] == b"RIFF"
    assert fetch_thumbnails(f"{url}/", "no gallery", ["left/01.png"]) == {}
    with pytest.raises(AddressError, match="http://localhost"):
        fetch_thumbnails(f"127.0.0.1:{running.http_port}", "noise", ["left/01.png"])
    with pytest.raises(CredentialsError, match="unencrypted"):
        fetch_thumbnails("http://shop.example", "noise", ["left/01.png"], key="secret")
    with pytest.raises(ServerUnavailableError, match="leave out --http"):
        fetch_thumbnails("http://127.0.0.1:1", "noise", ["left/01.png"])


def test_files_of_the_folders_and_no_others(ask: Ask) -> None:
    assert ask("GET", "/device/manifest.json").text == b"{}"  # type: ignore[attr-defined]
    page = ask("GET", "/")
    assert page.text == b"<p>page" and page.getheader("cross-origin-embedder-policy") == "require-corp"  # type: ignore[attr-defined]
    for path in ("/device/../secret.txt", "/device/%2e%2e/secret.txt", "/..%2fsecret.txt", "/device//etc/passwd"):
        assert ask("GET", path).status == 404, path


def test_pages_of_allowed_origins_may_ask(ask: Ask) -> None:
    asked = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "content-type,connect-timeout-ms",
    }
    assert ask("OPTIONS", SEARCH, origin=ORIGIN, **asked).getheader("access-control-allow-origin") == ORIGIN
    assert (
        ask("OPTIONS", SEARCH, origin="https://evil.example", **asked).getheader("access-control-allow-origin") is None
    )
    answer = ask("POST", DESCRIBE, b"{}", content_type="application/json", origin=ORIGIN)
    assert answer.getheader("access-control-allow-origin") == ORIGIN


def test_a_head_that_drips_and_a_body_that_never_comes_are_cut_off(running: RetrievalServer, ask: Ask) -> None:
    slow = open_socket(running)
    slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    started_s = time.monotonic()
    with pytest.raises((ConnectionError, TimeoutError, BrokenPipeError)):
        while time.monotonic() - started_s < 15:
            slow.sendall(b"X-A: b\r\n")
            time.sleep(0.1)
        raise AssertionError("the connection is still open")
    half = open_socket(running)
    half.sendall(
        f"POST {SEARCH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: 9\r\n\r\n".encode()
    )
    assert half.recv(4096).startswith(b"HTTP/1.1 4")
    silent = open_socket(running)
    with suppress(ConnectionResetError):
        assert silent.recv(1) == b""
    assert ask("GET", "/healthz").status == 200
    for opened in (slow, half, silent):
        opened.close()


def test_a_head_without_end_is_refused(running: RetrievalServer, ask: Ask) -> None:
    opened = open_socket(running)
    try:
        for _ in range(100):
            opened.sendall(b"X-A: " + b"b" * 4096 + b"\r\n")
    except ConnectionError:
        pass
    opened.close()
    opened = open_socket(running)
    opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: \xff\r\n\r\n")
    assert opened.recv(100).startswith(b"HTTP/1.1 400")
    opened.close()
    assert ask("GET", "/healthz").status == 200


def test_a_port_in_use_and_settings_that_make_no_sense(
    running: RetrievalServer, bundle: ServerBundle, gallery: Gallery, tmp_path: Path
) -> None:
    second = RetrievalServer(bundle, {"noise": gallery}, ServerConfig(http=HttpConfig(port=running.http_port)))
    with pytest.raises(ListenError, match=f"port {running.http_port} on 127.0.0.1 is in use"):
        second.start()
    for wrong in (
        {"port": 70_000}, {"allowed_origins": ("shop.example",)}, {"receive_timeout_s": 0.0}, {"max_connections": 0},
        {"web_folder": tmp_path / "nothing"},
    ):  # fmt: skip
        with pytest.raises(ListenError):
            HttpConfig(**wrong)
