"""Clients that send nothing, half of it, or too much at once; a server that is killed; memory that must not grow.

`SOAK_S` is the length of the soak, seconds: `make soak` sets an hour.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from asymcir_edge import RetrievalClient
from asymcir_edge.errors import ServerError
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel

SEARCH = "/asymcir.v1.Retrieval/Search"
IDLE_STREAMS = 1000
SOAK_S = float(os.environ.get("SOAK_S", "6"))
Wait = Callable[[Callable[[], bool]], None]


def _quiet(requests: int = 0) -> Callable[[threading.Event], Iterator[bytes]]:
    def send(stop: threading.Event) -> Iterator[bytes]:
        stop.wait(60)
        yield from [b""] * requests

    return send


def test_a_thousand_streams_that_send_nothing_keep_nobody_waiting(
    bundle: ServerBundle, gallery: Gallery, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    config = ServerConfig(receive_timeout_s=3.0)
    stop = threading.Event()
    with RetrievalServer(bundle, {"noise": gallery}, config) as server, ExitStack() as stack:
        stack.callback(stop.set)
        channels = [stack.enter_context(grpc.insecure_channel(server.address, [("test.number", n)])) for n in range(4)]
        before = threading.active_count()
        calls = [
            channels[n % 4].stream_unary(SEARCH).future(_quiet()(stop)) for n in range(IDLE_STREAMS)
        ]  # the client has a thread for each, the server must not
        with RetrievalClient(server.address, timeout_s=20.0) as client:
            for _ in range(5):
                assert len(client.search(tokens, model.word_space).hits) == 10
        on_server = [thread.name for thread in threading.enumerate() if thread.name.startswith("rpc")]
        assert len(on_server) < 20, f"{len(on_server)} of {threading.active_count() - before}"
        codes = {call.exception(timeout=60).code() for call in calls}
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert "did not come within 3 s" in calls[0].details()


def test_half_open_connections_keep_nobody_waiting(
    server: RetrievalServer, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    host, port = server.address.rsplit(":", 1)
    with ExitStack() as stack:
        for number in range(200):
            opened = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            if number % 2:  # HTTP/2 begins, and never goes on
                opened.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[: 3 + number % 22])
        with RetrievalClient(server.address, timeout_s=20.0) as client:
            assert len(client.search(tokens, model.word_space).hits) == 10


def test_calls_that_break_off_in_the_middle_of_a_message_leave_nothing_behind(
    server: RetrievalServer, tokens: NDArray[np.float32], model: TinyModel, wait_until: Wait
) -> None:
    request = retrieval_pb2.SearchRequest(
        tokens=pack_tokens(tokens), word_space=model.word_space, excluded_ids=[f"nobody{n:050}" for n in range(900)]
    ).SerializeToString()
    assert len(request) > 50_000
    random = np.random.default_rng(7)
    for length in random.integers(100, len(request), 40).tolist():
        with _cutting_proxy(server.port, length) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as broken:
                channel.unary_unary(SEARCH)(request, timeout=10)
            assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.service.admission.wait_until_idle(10.0)
    with RetrievalClient(server.address) as client:
        assert len(client.search(tokens, model.word_space).hits) == 10


class _cutting_proxy:
    """Passes so many bytes of a client on to a server, and then cuts the connection."""

    def __init__(self, port: int, length: int) -> None:
        self._target, self._length = port, length

    def __enter__(self) -> int:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._pass)
        self._thread.start()
        return int(self._listening.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._thread.join()

    def _pass(self) -> None:
        client, _ = self._listening.accept()
        self._listening.close()
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            back = threading.Thread(target=self._pass_back, args=(server, client))
            back.start()
            left = self._length
            while left and (data := client.recv(min(left, 65_536))):
                server.sendall(data)
                left -= len(data)
            for end in (server, client):
                end.shutdown(socket.SHUT_RDWR)
            back.join()

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65_536):
                client.sendall(data)
        except OSError:
            return


def test_killed_and_started_again_under_load_it_gives_no_wrong_answer(
    bundle_folder: Path,
    gallery_folder: Path,
    tmp_path: Path,
    tokens: NDArray[np.float32],
    model: TinyModel,
    start_asymcir: Callable[..., subprocess.Popen[str]],
    wait_until: Wait,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start() -> subprocess.Popen[str]:
        port_file = tmp_path / "port"
        port_file.unlink(missing_ok=True)
        process = start_asymcir(
            *("serve", "--server-bundle", bundle_folder, "--gallery", gallery_folder, "--port", port),
            *("--port-file", port_file),
        )
        wait_until(lambda: port_file.exists() or process.poll() is not None)
        return process

    def search(client: RetrievalClient, number: int) -> list[str]:
        return [hit.id for hit in client.search(tokens * (1.0 + number % 3), model.word_space, top_k=5).hits]

    process = start()
    with RetrievalClient(f"127.0.0.1:{port}", timeout_s=5.0) as client:
        expected = [search(client, number) for number in range(3)]
    wrong, answered, stop = list[Any](), [0], threading.Event()

    def ask(number: int) -> None:
        with RetrievalClient(f"127.0.0.1:{port}", timeout_s=5.0) as client:
            while not stop.is_set():
                number += 1
                try:
                    found = search(client, number)
                except ServerError:
                    time.sleep(0.02)
                    continue
                answered[0] += 1
                if found != expected[number % 3]:
                    wrong.append((number, found))

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    try:
        for kill in (signal.SIGKILL, signal.SIGTERM):
            before = answered[0]
            wait_until(lambda before=before: answered[0] > before + 20)
            process.send_signal(kill)
            process.wait(timeout=40)
            process = start()
        before = answered[0]
        wait_until(lambda: answered[0] > before + 20)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert wrong == []
    with RetrievalClient(f"127.0.0.1:{port}") as client:
        assert search(client, 0) == expected[0]


def test_memory_stays_flat_under_load(
    bundle_folder: Path,
    gallery_folder: Path,
    tmp_path: Path,
    tokens: NDArray[np.float32],
    model: TinyModel,
    start_asymcir: Callable[..., subprocess.Popen[str]],
    wait_until: Wait,
) -> None:
    port_file = tmp_path / "port"
    process = start_asymcir(
        *("serve", "--server-bundle", bundle_folder, "--gallery", gallery_folder, "--port", 0),
        *("--port-file", port_file, "--max-in-flight", 2, "--concurrency", 2),
    )
    wait_until(port_file.exists)
    stop, outcomes = threading.Event(), {"answered": 0, "refused": 0}

    def ask(number: int) -> None:
        change = 0
        channel = grpc.insecure_channel(f"127.0.0.1:{port_file.read_text().strip()}", [("test.number", number)])
        with channel:
            call = channel.unary_unary(SEARCH, response_deserializer=retrieval_pb2.SearchResponse.FromString)
            while not stop.is_set():
                change += 1
                request = retrieval_pb2.SearchRequest(
                    tokens=pack_tokens(tokens), word_space=model.word_space, modifier=f"is {change % 97}", top_k=5
                )
                try:
                    call(request.SerializeToString(), timeout=20)
                    outcomes["answered"] += 1
                except grpc.RpcError as exc:
                    assert exc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, exc
                    outcomes["refused"] += 1

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for caller in callers:
        caller.start()
    try:
        time.sleep(SOAK_S / 2)
        half_mb = _memory_mb(process.pid)
        time.sleep(SOAK_S / 2)
        end_mb = _memory_mb(process.pid)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert outcomes["answered"] > 20, outcomes  # how many are refused depends on the machine
    assert end_mb < 1.05 * half_mb + 8.0, f"{half_mb:.0f} MB after a half, {end_mb:.0f} MB at the end: {outcomes}"


def _memory_mb(process: int) -> float:
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return float(line.split()[1]) / 1000.0
