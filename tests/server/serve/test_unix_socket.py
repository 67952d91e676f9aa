"""A server that answers on a Unix socket."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from asymcir_edge import RetrievalClient
from asymcir_edge.cli import main
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from asymcir_server.errors import ListenError
from asymcir_server.serve.http import HttpConfig


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short path, whatever the test's folder is called."""
    monkeypatch.chdir(tmp_path)
    return Path("s.sock")


def test_served_and_removed(bundle: ServerBundle, gallery: Gallery, place: Path) -> None:
    config = ServerConfig(unix_socket=place, host="0.0.0.0")  # the host is not listened on
    with RetrievalServer(bundle, {"noise": gallery}, config) as server:
        assert server.address == f"unix:{place}"
        assert server.port == 0
        with RetrievalClient(server.address) as client:
            assert client.describe().galleries[0].name == "noise"
        with pytest.raises(ListenError, match="another server listens on the Unix socket"):
            RetrievalServer(bundle, {"noise": gallery}, config).start()
    assert not place.exists()


def test_what_a_killed_server_left_is_replaced(bundle: ServerBundle, gallery: Gallery, place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    with (
        RetrievalServer(bundle, {"noise": gallery}, ServerConfig(unix_socket=str(place))) as server,
        RetrievalClient(server.address) as client,
    ):
        assert client.describe().galleries


def test_a_path_that_cannot_be_used_is_refused(bundle: ServerBundle, gallery: Gallery, place: Path) -> None:
    place.write_text("mine")
    for path, reason in (
        (place, "is no Unix socket"),
        (Path("x" * 200), "choose a shorter one"),
        (Path("nowhere") / "s", "there is no folder nowhere"),
    ):
        with pytest.raises(ListenError, match=reason):
            RetrievalServer(bundle, {"noise": gallery}, ServerConfig(unix_socket=path)).start()
    assert place.read_text() == "mine"


def test_http_beside_it_keeps_to_the_rules_of_its_address(place: Path) -> None:
    with pytest.raises(ListenError, match="nothing would be encrypted"):
        ServerConfig(unix_socket=place, host="0.0.0.0", http=HttpConfig())


def test_the_command(
    bundle_folder: Path,
    gallery_folder: Path,
    place: Path,
    start_asymcir: Callable[..., subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = place.absolute()
    if len(os.fsencode(path)) > 100:
        path = place
    arguments = ["--server-bundle", bundle_folder, "--gallery", gallery_folder, "--listen"]
    process = start_asymcir("serve", *arguments, f"unix:{path}")
    assert process.stdout is not None
    assert process.stdout.readline().rstrip().endswith(f" on unix:{path}")
    assert main(["describe", "--server", f"unix:{path}"]) == 0
    assert "gallery noise" in capsys.readouterr().out
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not path.exists()
    for words in (["localhost:1"], ["unix:"], [f"unix:{path}", "--port-file", "port"]):
        assert main(["serve", *map(str, arguments), *words]) in {1, 2}
        refused = capsys.readouterr().err
        assert "unix:PATH" in refused or "a Unix socket has none" in refused
