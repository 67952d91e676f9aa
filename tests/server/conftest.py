"""Bundles, pictures and galleries that the server tests share; all of them real, all of them tiny."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from asymcir_protos.v1 import retrieval_pb2_grpc
from asymcir_server import Gallery, RetrievalServer, ServerBundle, build_gallery
from numpy.typing import NDArray
from PIL import Image
from tiny_server_bundle import TinyModel, write_tiny_bundle

PICTURES = 40


@pytest.fixture(scope="session")
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "server", model)


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> ServerBundle:
    return ServerBundle.load(bundle_folder, threads=1)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noise pictures in two folders, sizes from 9 x 9 to 48 x 48, the larger share not square."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(3)
    for number in range(PICTURES):
        path = folder / ("left" if number % 2 else "right") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        height, width = generator.integers(9, 49, size=2)
        write_noise(path, (height, width, 3), generator)
    return folder


@pytest.fixture(scope="session")
def gallery_folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path, bundle: ServerBundle) -> Path:
    folder = tmp_path_factory.mktemp("galleries") / "noise"
    build_gallery(pictures, bundle, folder)
    return folder


@pytest.fixture
def gallery(gallery_folder: Path, bundle: ServerBundle) -> Iterator[Gallery]:
    opened = Gallery.open(gallery_folder, bundle.target_spaces)
    yield opened
    opened.close()


@pytest.fixture
def server(bundle: ServerBundle, gallery: Gallery) -> Iterator[RetrievalServer]:
    with RetrievalServer(bundle, {"noise": gallery}) as running:
        yield running


@pytest.fixture
def channel(server: RetrievalServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> retrieval_pb2_grpc.RetrievalStub:
    return retrieval_pb2_grpc.RetrievalStub(channel)


@pytest.fixture
def run_asymcir() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command_line(*arguments), capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def start_asymcir() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command and leave it running; killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command_line(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, at most twenty seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.005)

    return wait


@pytest.fixture
def tokens(model: TinyModel) -> NDArray[np.float32]:
    """Six sentence tokens, [6, D]."""
    return np.random.default_rng(11).standard_normal((6, model.word_width)).astype(np.float32)


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "asymcir_edge", *(str(argument) for argument in arguments)]


def write_noise(path: Path, shape: tuple[int, ...], generator: np.random.Generator) -> None:
    Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path)
