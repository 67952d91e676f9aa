"""The committed demo bundles, a gallery of some of its pictures, and a server in a process of its own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ASSETS = Path(__file__).parents[2] / "demo" / "assets"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def assets() -> Path:
    return ASSETS


@pytest.fixture(scope="session")
def asymcir() -> Run:
    def run(*words: object, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "asymcir_edge", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture(scope="session")
def picture_list(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tenth picture of the demo's gallery, and those that the tests ask for."""
    source = assets / "gallery" / "gallery.jsonl"
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    wanted = {"woman", "woman-red-hair", "woman-blond-hair", "man", "red-heart", "blue-heart", "rocket"}
    kept = [record for number, record in enumerate(records) if number % 10 == 0 or record["id"] in wanted]
    path = tmp_path_factory.mktemp("pictures") / "list.jsonl"
    lines = [json.dumps({**record, "path": str(source.parent / record["path"])}) for record in kept]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def gallery(assets: Path, picture_list: Path, asymcir: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("galleries") / "emoji"
    done = asymcir("gallery", "build", picture_list, "--server-bundle", assets / "server", "--gallery", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def address(assets: Path, gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port_file = tmp_path_factory.mktemp("server") / "port"
    command = [
        sys.executable,
        "-m",
        "asymcir_edge",
        "serve",
        "--server-bundle",
        assets / "server",
        "--gallery",
        gallery,
    ]
    process = subprocess.Popen(
        [*map(str, command), "--port", "0", "--port-file", str(port_file)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (port_file.is_file() and port_file.read_text()):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"127.0.0.1:{int(port_file.read_text())}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
