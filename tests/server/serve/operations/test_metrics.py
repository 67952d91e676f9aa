"""Metrics: every call is counted once, by its face, method and status; `serve --check`."""

import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from asymcir_edge import RetrievalClient
from asymcir_edge.errors import RequestRefusedError
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from asymcir_server.errors import ListenError
from asymcir_server.serve.http import HttpConfig
from asymcir_server.serve.operations import metrics
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from tiny_server_bundle import TinyModel

Read = Callable[[], dict[tuple[str, ...], float]]


@pytest.fixture
def running(bundle: ServerBundle, gallery: Gallery) -> Iterator[RetrievalServer]:
    config = ServerConfig(http=HttpConfig(port=0), metrics_port=0)
    with RetrievalServer(bundle, {"noise": gallery}, config) as server:
        yield server


@pytest.fixture
def read(running: RetrievalServer) -> Read:
    """Samples: name and the values of its labels, in the order of their names -> value."""

    def fetch() -> dict[tuple[str, ...], float]:
        with urllib.request.urlopen(f"http://{running.http_address}/metrics", timeout=10) as answer:
            assert answer.headers["content-type"] == metrics.CONTENT_TYPE
            families = text_string_to_metric_families(answer.read().decode())
            return {
                (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
                for family in families
                for sample in family.samples
            }

    return fetch


def test_calls_are_counted_by_face_method_and_status(
    running: RetrievalServer, read: Read, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    with RetrievalClient(running.address) as client:
        for _ in range(3):
            client.search(tokens, model.word_space)
        client.describe()
        with pytest.raises(RequestRefusedError):
            client.search(tokens, model.word_space, gallery="none")
        with grpc.insecure_channel(running.address) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary("/asymcir.v1.Retrieval/Search")(b"\xff\xff", timeout=10)
    url = f"http://{running.http_address}/asymcir.v1.Retrieval/"
    for method, body in (("Describe", b"{}"), ("Search", b"{}")):
        request = urllib.request.Request(url + method, body, {"content-type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as exc:
            assert (method, exc.code) == ("Search", 400)
    found = read()
    counted = {key[1:]: value for key, value in found.items() if key[0] == "asymcir_requests_total"}
    assert counted == {
        ("OK", "grpc", "Search"): 3,
        ("OK", "grpc", "Describe"): 1,
        ("NOT_FOUND", "grpc", "Search"): 1,
        ("INVALID_ARGUMENT", "grpc", "Search"): 1,
        ("OK", "http", "Describe"): 1,
        ("INVALID_ARGUMENT", "http", "Search"): 1,
    }
    assert found["asymcir_request_seconds_count", "grpc", "Search"] == 5
    for stage in ("queue", "encode", "search"):
        assert found["asymcir_stage_seconds_count", stage] == 3
    assert found["asymcir_stage_seconds_sum", "encode"] > 0
    assert (found["asymcir_text_batch_size_count",], found["asymcir_text_batch_size_sum",]) == (3, 3)
    assert found["asymcir_gallery_pictures", "noise"] == 40
    assert found["asymcir_gallery_info", "noise", "exact", "union", "000001"] == 1
    assert found["asymcir_in_flight",] == found["asymcir_text_queue_depth",] == found["asymcir_draining",] == 0
    assert found["process_resident_memory_bytes",] > 1e6


def test_the_documented_metrics_are_those_that_there_are(read: Read) -> None:
    documented = set(re.findall(r"^\| (asymcir_\w+) \|", metrics.__doc__ or "", re.MULTILINE))
    suffixes = r"_(count|sum|bucket|created)$"
    found = {re.sub(suffixes, "", name) for name, *_ in read() if name.startswith("asymcir_")}
    # What nobody called yet has no sample.
    assert found <= documented and documented - found <= {"asymcir_requests_total", "asymcir_request_seconds"} | {
        "asymcir_stage_seconds"
    }


def test_a_port_of_its_own(bundle: ServerBundle, gallery: Gallery, running: RetrievalServer) -> None:
    port = running.port
    with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port} for metrics"):
        RetrievalServer(bundle, {"noise": gallery}, ServerConfig(metrics_port=port)).start()
    stop = running.service.metrics.serve("127.0.0.1", running.http_port + 1)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.http_port + 1}/metrics", timeout=10) as answer:
            assert b"asymcir_in_flight 0.0" in answer.read()
    finally:
        stop()


def test_check_says_what_would_be_served_or_why_not(
    bundle_folder: Path, gallery_folder: Path, tmp_path: Path, run_asymcir: Callable[..., "subprocess.CompletedProcess"]
) -> None:
    words = ("serve", "--server-bundle", bundle_folder, "--gallery", f"noise={gallery_folder}", "--port", 0, "--check")
    done = run_asymcir(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("noise: 40 pictures, union, exact, version 000001\ncan be served: word_space ")
    for more, said in (
        (("--keys", tmp_path / "none.json"), "none.json"),
        (("--gallery", tmp_path / "none"), "no gallery at"),
        (
            ("--tls-certificate", bundle_folder / "manifest.json", "--tls-key", bundle_folder / "manifest.json"),
            "cannot use the certificate",
        ),
    ):
        refused = run_asymcir(*words, *more)
        assert refused.returncode == 1 and said in refused.stderr and "Traceback" not in refused.stderr
