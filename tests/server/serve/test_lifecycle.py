"""Listening, health, reflection, draining, and the command itself."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from asymcir_server.commands import parse_galleries
from asymcir_server.errors import ListenError, UnavailableError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel, write_tiny_bundle

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", "asymcir.v1.Retrieval"])
def test_health_serves_and_then_does_not(bundle: ServerBundle, gallery: Gallery, service: str) -> None:
    server = RetrievalServer(bundle, {"noise": gallery})
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(request).status == SERVING
        updates = stub.Watch(request)
        assert next(updates).status == SERVING
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert next(updates).status == NOT_SERVING
        updates.cancel()
        stopping.join()


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {"asymcir.v1.Retrieval", "grpc.health.v1.Health"}
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="asymcir.v1.Retrieval")
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    assert answer.file_descriptor_response.file_descriptor_proto


def test_a_port_in_use_is_refused(bundle: ServerBundle, gallery: Gallery, server: RetrievalServer) -> None:
    second = RetrievalServer(bundle, {"noise": gallery}, ServerConfig(port=server.port))
    with pytest.raises(ListenError, match=f"port {server.port} on 127.0.0.1 is in use"):
        second.start()
    second.stop()


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours(bundle: ServerBundle, gallery: Gallery, host: str) -> None:
    server = RetrievalServer(bundle, {"noise": gallery}, ServerConfig(host=host, allow_plaintext=True))
    with pytest.raises(ListenError, match="cannot listen on"):
        server.start()
    server.stop()


def test_config_is_checked() -> None:
    for change in ({"port": 70_000}, {"drain_timeout_s": -1.0}, {"drain_timeout_s": 1e9}):
        with pytest.raises(ListenError):
            ServerConfig(**change)


def test_stop_lets_requests_in_flight_end(
    tmp_path: Path, gallery: Gallery, tokens: NDArray[np.float32], model: TinyModel, wait_until: Callable
) -> None:
    bundle = ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel(slow_steps=12)), threads=1)
    request = retrieval_pb2.SearchRequest(tokens=pack_tokens(tokens), word_space=model.word_space)
    server = RetrievalServer(bundle, {"noise": gallery})
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        stub = retrieval_pb2_grpc.RetrievalStub(channel)
        calls = [stub.Search.future(request) for _ in range(4)]
        wait_until(lambda: server.service.admission._in_flight == 4)
        server.stop()
        assert [len(call.result().hits) for call in calls] == [10] * 4
    server.stop()  # a second time changes nothing
    with pytest.raises(UnavailableError, match="shutting down"):
        server.service.search(request)


def test_sigterm_drains(
    tmp_path: Path,
    gallery_folder: Path,
    tokens: NDArray[np.float32],
    model: TinyModel,
    start_asymcir: Callable,
    wait_until: Callable,
) -> None:
    slow = write_tiny_bundle(tmp_path / "server", TinyModel(slow_steps=25))
    port_file = tmp_path / "port"
    process = start_asymcir(
        "serve", "--server-bundle", slow, "--gallery", f"emoji={gallery_folder}", "--port", 0,
        "--port-file", port_file, "--threads", 1,
    )  # fmt: skip
    wait_until(lambda: port_file.is_file() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]
    address = f"127.0.0.1:{int(port_file.read_text())}"
    request = retrieval_pb2.SearchRequest(tokens=pack_tokens(tokens), word_space=model.word_space)
    with grpc.insecure_channel(address) as channel:
        stub = retrieval_pb2_grpc.RetrievalStub(channel)
        assert stub.Describe(retrieval_pb2.DescribeRequest()).galleries[0].name == "emoji"
        calls = [stub.Search.future(request) for _ in range(4)]  # on the same connection, so sent before what follows
        stub.Describe(retrieval_pb2.DescribeRequest())
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(health).status == SERVING
        assert not any(call.done() for call in calls), [call.details() for call in calls if call.done()]
        process.send_signal(signal.SIGTERM)
        assert next(health).status == NOT_SERVING
        health.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            while True:
                stub.Search(request, timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        # One that no thread had begun with may be refused; a search that began comes to its end.
        ended = [len(call.result().hits) for call in calls if call.code() is grpc.StatusCode.OK]
        assert ended and set(ended) == {10}
        assert {call.code() for call in calls} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert f"serving emoji on {address}" in output
    assert "Traceback" not in errors
    assert not port_file.exists()


def test_sigint_ends_it_too(
    tmp_path: Path, bundle_folder: Path, gallery_folder: Path, start_asymcir: Callable, wait_until: Callable
) -> None:
    port_file = tmp_path / "port"
    process = start_asymcir(
        "serve", "--server-bundle", bundle_folder, "--gallery", gallery_folder, "--port", 0, "--port-file", port_file
    )
    wait_until(lambda: port_file.is_file() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert output.startswith("serving noise on 127.0.0.1:")


def test_the_command_builds_looks_and_refuses(
    tmp_path: Path, bundle_folder: Path, gallery_folder: Path, pictures: Path, run_asymcir: Callable
) -> None:
    out = tmp_path / "g"
    built = run_asymcir(
        "gallery", "build", pictures, "--server-bundle", bundle_folder, "--gallery", out, "--target", "sum"
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert "40 pictures as sum, 0 quarantined, index exact, recall@10 1.000" in built.stdout
    info = run_asymcir("gallery", "info", "--gallery", out)
    assert info.returncode == 0
    assert dict(line.split() for line in info.stdout.splitlines())["target"] == "sum"

    other = write_tiny_bundle(tmp_path / "other", TinyModel(seed=8))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = ("serve", "--port", port, "--gallery", gallery_folder, "--server-bundle")
        refusals = [
            ((*serve, bundle_folder), f"port {port} on 127.0.0.1 is in use"),
            (("serve", "--port", 0, "--gallery", gallery_folder, "--server-bundle", other), "target space"),
            (("serve", "--port", 0, "--gallery", tmp_path / "none", "--server-bundle", bundle_folder), "no gallery at"),
            (("gallery", "build", pictures, "--server-bundle", other, "--gallery", gallery_folder), "--replace-space"),
            (
                ("gallery", "build", pictures, "--server-bundle", bundle_folder, "--gallery", pictures),
                "choose another --gallery",
            ),
            (
                ("gallery", "build", tmp_path / "none", "--server-bundle", bundle_folder, "--gallery", out),
                "none does not exist: expected a folder",
            ),
        ]
        for arguments, text in refusals:
            refused = run_asymcir(*arguments)
            assert refused.returncode == 1
            assert refused.stdout == ""
            assert text in refused.stderr
            assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_gallery_arguments() -> None:
    assert parse_galleries(["a=/x/y", "/x/z", "/p=q/w"]) == {
        "a": Path("/x/y"),
        "z": Path("/x/z"),
        "w": Path("/p=q/w"),
    }
    with pytest.raises(ListenError, match="two galleries are named z"):
        parse_galleries(["/x/z", "z=/y"])


def test_registering_commands_imports_no_library() -> None:
    code = (
        "import argparse, sys; from asymcir_server.commands import register_gallery, register_serve;"
        "s = argparse.ArgumentParser().add_subparsers(); register_gallery(s); register_serve(s);"
        "print([m for m in ('onnxruntime', 'faiss', 'tokenizers', 'grpc', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_server_never_imports_torch() -> None:
    code = (
        "import sys, asymcir_server; [getattr(asymcir_server, name) for name in asymcir_server.__all__];"
        "print([m for m in ('torch', 'open_clip', 'timm', 'transformers', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
