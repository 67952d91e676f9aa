"""The client against a real gRPC server whose answers are scripted."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from asymcir_common import AsymcirError, TokensError
from asymcir_edge import (
    AccessDeniedError,
    AddressError,
    RequestRefusedError,
    RetrievalClient,
    ServerError,
    ServerFailedError,
    ServerOverloadedError,
    ServerTimeoutError,
    ServerUnavailableError,
    SpaceMismatchError,
)
from asymcir_protos import unpack_tokens
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc

Answer = Callable[[Any, grpc.ServicerContext], Any]
TOKENS = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)


class ScriptedServicer(retrieval_pb2_grpc.RetrievalServicer):
    """Answers each call with the next of `script`, the last again and again, and keeps the requests."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.requests: list[Any] = []

    def _answer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return answer(request, context)

    Describe = Search = _answer


def abort(code: grpc.StatusCode, details: str = "the reason", **metadata: str) -> Answer:
    def answer(_: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata(tuple((key.replace("_", "-"), value) for key, value in metadata.items()))
        context.abort(code, details)

    return answer


def hits(count: int = 2, metadata_bytes: int = 0) -> Answer:
    response = retrieval_pb2.SearchResponse(
        gallery="main",
        gallery_version="000007",
        timing=retrieval_pb2.Timing(queue_ms=0.5, encode_ms=4, search_ms=0.25),
    )
    for rank in range(count):
        hit = response.hits.add(id=f"item-{rank}", score=0.5 - rank / 8)
        if metadata_bytes:
            hit.metadata.update({"name": "x" * metadata_bytes, "tags": ["a", "b"], "year": 2024})
    return lambda request, context: response


def start_server(servicer: ScriptedServicer, port: int = 0) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    retrieval_pb2_grpc.add_RetrievalServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def servicer() -> ScriptedServicer:
    return ScriptedServicer()


@pytest.fixture
def client(servicer: ScriptedServicer) -> Iterator[RetrievalClient]:
    server, port = start_server(servicer)
    with RetrievalClient(f"127.0.0.1:{port}", timeout_s=5) as client:
        yield client
    server.stop(None)


def test_search(client: RetrievalClient, servicer: ScriptedServicer) -> None:
    servicer.script = [hits(metadata_bytes=3)]
    result = client.search(
        TOKENS,
        "space",
        modifier="aber größer 🎈",
        gallery="main",
        top_k=7,
        excluded_ids=["a", "ü"],
        with_metadata=True,
    )
    (request,) = servicer.requests
    np.testing.assert_allclose(unpack_tokens(request.tokens), TOKENS, atol=1e-3)
    assert request.tokens.WhichOneof("encoding") == "fp16"
    assert (request.word_space, request.modifier, request.gallery) == ("space", "aber größer 🎈", "main")
    assert (request.top_k, list(request.excluded_ids), request.with_metadata) == (7, ["a", "ü"], True)
    assert [(hit.id, hit.score) for hit in result.hits] == [("item-0", 0.5), ("item-1", 0.375)]
    assert result.hits[0].metadata == {"name": "xxx", "tags": ["a", "b"], "year": 2024}
    assert (result.gallery, result.gallery_version) == ("main", "000007")
    assert (result.timing.queue_ms, result.timing.encode_ms, result.timing.search_ms) == (0.5, 4, 0.25)
    assert result.timing.round_trip_ms > 0
    assert result.request_size_bytes == request.ByteSize()


def test_defaults_and_int8(servicer: ScriptedServicer) -> None:
    servicer.script = [hits()]
    server, port = start_server(servicer)
    with RetrievalClient(f"localhost:{port}", token_encoding="int8") as client:
        result = client.search(TOKENS, "space")
    server.stop(None)
    (request,) = servicer.requests
    assert request.tokens.WhichOneof("encoding") == "int8"
    assert (request.modifier, request.gallery, request.top_k, request.with_metadata) == ("", "", 10, False)
    assert result.hits[0].metadata is None


def test_describe(client: RetrievalClient, servicer: ScriptedServicer) -> None:
    response = retrieval_pb2.DescribeResponse(
        server_version="0.1.0",
        word_space="space",
        word_width=8,
        limits=retrieval_pb2.Limits(max_top_k=1000, context_length=77),
        galleries=[retrieval_pb2.Gallery(name="main", version="000007", size=3, target="union")],
    )
    servicer.script = [lambda request, context: response]
    description = client.describe()
    assert (description.server_version, description.word_space, description.word_width) == ("0.1.0", "space", 8)
    assert (description.limits.max_top_k, description.limits.context_length) == (1000, 77)
    assert [(gallery.name, gallery.size) for gallery in description.galleries] == [("main", 3)]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, RequestRefusedError),
        (grpc.StatusCode.OUT_OF_RANGE, RequestRefusedError),
        (grpc.StatusCode.NOT_FOUND, RequestRefusedError),
        (grpc.StatusCode.PERMISSION_DENIED, AccessDeniedError),
        (grpc.StatusCode.UNAUTHENTICATED, AccessDeniedError),
        (grpc.StatusCode.FAILED_PRECONDITION, SpaceMismatchError),
        (grpc.StatusCode.CANCELLED, ServerUnavailableError),
        (grpc.StatusCode.INTERNAL, ServerFailedError),
        (grpc.StatusCode.UNKNOWN, ServerFailedError),
        (grpc.StatusCode.DATA_LOSS, ServerFailedError),
    ],
)
def test_status_codes(
    client: RetrievalClient, servicer: ScriptedServicer, code: grpc.StatusCode, kind: type[ServerError]
) -> None:
    servicer.script = [abort(code, "line one\nline two")]
    with pytest.raises(kind, match="line one line two") as caught:
        client.search(TOKENS, "space")
    assert type(caught.value) is kind
    assert client.address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.retry_after_s is None
    assert len(servicer.requests) == 1  # not repeated


def test_exception_in_the_server(client: RetrievalClient, servicer: ScriptedServicer) -> None:
    servicer.script = [lambda request, context: 1 / 0]
    with pytest.raises(ServerFailedError):
        client.describe()


def test_retry_hint(client: RetrievalClient, servicer: ScriptedServicer) -> None:
    servicer.script = [abort(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc_retry_pushback_ms="250")]
    with pytest.raises(ServerOverloadedError, match=r"at its limit: the reason; try again in 0\.25 s") as caught:
        client.search(TOKENS, "space")
    assert caught.value.retry_after_s == 0.25


@pytest.mark.parametrize("value", ["-1", "soon", ""])
def test_retry_hint_that_is_none(client: RetrievalClient, servicer: ScriptedServicer, value: str) -> None:
    servicer.script = [abort(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc_retry_pushback_ms=value)]
    with pytest.raises(ServerOverloadedError) as caught:
        client.search(TOKENS, "space")
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_call_that_was_not_taken_is_sent_again(
    client: RetrievalClient, servicer: ScriptedServicer, code: grpc.StatusCode
) -> None:
    servicer.script = [abort(code), abort(code), hits()]
    assert len(client.search(TOKENS, "space").hits) == 2
    assert len(servicer.requests) == 3


def test_unavailable_is_not_tried_without_end(client: RetrievalClient, servicer: ScriptedServicer) -> None:
    servicer.script = [abort(grpc.StatusCode.UNAVAILABLE, "draining")]
    with pytest.raises(ServerUnavailableError, match=r"cannot answer now \(draining\); try again in a moment"):
        client.search(TOKENS, "space")
    assert len(servicer.requests) == 4


def test_timeout(servicer: ScriptedServicer) -> None:
    servicer.script = [lambda request, context: time.sleep(0.6)]
    server, port = start_server(servicer)
    with (
        RetrievalClient(f"127.0.0.1:{port}", timeout_s=0.2) as client,
        pytest.raises(ServerTimeoutError, match=r"within 0\.2 s"),
    ):
        client.describe()
    server.stop(None)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_not_asked_through_a_proxy(
    variable: str, host: str, servicer: ScriptedServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    servicer.script = [hits()]
    server, port = start_server(servicer)
    with RetrievalClient(f"{host}:{port}", timeout_s=5) as client:
        assert len(client.search(TOKENS, "space").hits) == 2
    server.stop(None)


def test_a_text_is_no_list_of_ids(client: RetrievalClient, servicer: ScriptedServicer) -> None:
    with pytest.raises(RequestRefusedError, match="expected a list of excluded ids"):
        client.search(TOKENS, "space", excluded_ids="a.png")
    assert not servicer.requests


def test_answer_above_4_megabytes(client: RetrievalClient, servicer: ScriptedServicer) -> None:
    servicer.script = [hits(5, metadata_bytes=1_000_000)]
    with pytest.raises(RequestRefusedError, match="ask for fewer hits"):
        client.search(TOKENS, "space", with_metadata=True)


def test_other_service_at_the_address() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RetrievalClient(f"127.0.0.1:{port}") as client, pytest.raises(RequestRefusedError, match="no asymcir server"):
        client.describe()
    server.stop(None)


def test_server_not_running_and_started_later(servicer: ScriptedServicer) -> None:
    port = free_port()
    servicer.script = [hits()]
    with RetrievalClient(f"127.0.0.1:{port}", timeout_s=5) as client:
        with pytest.raises(ServerUnavailableError) as caught:
            client.search(TOKENS, "space")
        assert str(caught.value) == (
            f"no server answers at 127.0.0.1:{port}: start one with `asymcir serve`, or check the address"
        )
        server, _ = start_server(servicer, port)
        deadline_s = time.monotonic() + 5
        while True:
            try:
                assert client.search(TOKENS, "space").hits
                break
            except ServerUnavailableError:
                assert time.monotonic() < deadline_s
        server.stop(None)


def test_host_that_does_not_exist() -> None:
    with (
        RetrievalClient("no-such-host.invalid:50051", timeout_s=5) as client,
        pytest.raises(ServerUnavailableError, match=r"no server answers at no-such-host\.invalid:50051"),
    ):
        client.describe()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "localhost:",
        ":50051",
        "localhost:0",
        "localhost:65536",
        "http://x:1",
        "a b:1",
        "x:y",
        "::1:50051",
    ],
)
def test_wrong_address(address: str) -> None:
    with pytest.raises(AddressError, match="HOST:PORT"):
        RetrievalClient(address)


@pytest.mark.parametrize("address", ["localhost:50051", "127.0.0.1:1", "[::1]:50051", "unix:/tmp/x", "a-b.c:65535"])
def test_right_address(address: str) -> None:
    RetrievalClient(address).close()


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_wrong_timeout(timeout_s: float) -> None:
    with pytest.raises(RequestRefusedError, match="timeout"):
        RetrievalClient("localhost:50051", timeout_s=timeout_s)


def test_wrong_encoding() -> None:
    with pytest.raises(TokensError, match="'fp8'"):
        RetrievalClient("localhost:50051", token_encoding="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"top_k": 0}, RequestRefusedError),
        ({"top_k": 2**32}, RequestRefusedError),
        ({"modifier": "but \udcff"}, RequestRefusedError),
        ({"excluded_ids": ["\udcff"]}, RequestRefusedError),
        ({"tokens": np.full((2, 2), np.nan, np.float32)}, TokensError),
        ({"tokens": np.zeros(4, np.float32)}, TokensError),
    ],
)
def test_wrong_request_is_not_sent(
    client: RetrievalClient, servicer: ScriptedServicer, arguments: dict[str, Any], kind: type[AsymcirError]
) -> None:
    with pytest.raises(kind):
        client.search(**{"tokens": TOKENS, "word_space": "space", **arguments})
    assert servicer.requests == []


def test_closed_client(client: RetrievalClient) -> None:
    client.close()
    with pytest.raises(RequestRefusedError, match="closed"):
        client.describe()
