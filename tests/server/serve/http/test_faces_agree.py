"""The same request on both faces: the same answer, or the same status code."""

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig, ServiceLimits, build_gallery
from asymcir_server.gallery import BuildConfig, GalleryHolder
from asymcir_server.serve.http import HttpConfig
from google.protobuf import json_format
from google.protobuf.message import Message
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel, write_tiny_bundle

SEARCH, DESCRIBE = "/asymcir.v1.Retrieval/Search", "/asymcir.v1.Retrieval/Describe"
GRPC_WEB = "application/grpc-web+proto"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path, bundle: ServerBundle) -> Path:
    made = tmp_path_factory.mktemp("http") / "noise"
    build_gallery(pictures, bundle, made, config=BuildConfig(thumbnail_side=16))
    return made


@pytest.fixture(scope="module")
def running(folder: Path, bundle: ServerBundle) -> Iterator[RetrievalServer]:
    holder = GalleryHolder(Gallery.open(folder, bundle.target_spaces))
    config = ServerConfig(admin=True, http=HttpConfig(allowed_origins=("https://shop.example",)))
    with RetrievalServer(bundle, {"noise": holder}, config) as server:
        yield server


@pytest.fixture
def request_message(tokens: NDArray[np.float32], model: TinyModel) -> retrieval_pb2.SearchRequest:
    return retrieval_pb2.SearchRequest(
        tokens=pack_tokens(tokens), word_space=model.word_space, modifier="red", top_k=5, with_metadata=True
    )


def send(
    server: RetrievalServer, path: str, body: bytes | None = None, kind: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Ask over HTTP; status, headers, body."""
    names = {name.replace("_", "-"): value for name, value in headers.items()} | (
        {"content-type": kind} if kind else {}
    )
    asked = urllib.request.Request(f"http://{server.http_address}{path}", data=body, headers=names)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, {k.lower(): v for k, v in exc.headers.items()}, exc.read()


def ask_grpc(server: RetrievalServer, message: Message, **options: Any) -> Message | str:
    with grpc.insecure_channel(server.address) as channel:
        try:
            answer: Message = retrieval_pb2_grpc.RetrievalStub(channel).Search(message, **options)
            return answer
        except grpc.RpcError as exc:
            return str(exc.code().name.lower())


def ask_connect(server: RetrievalServer, message: Message) -> Message | str:
    status, _, body = send(server, SEARCH, message.SerializeToString(), "application/proto")
    return retrieval_pb2.SearchResponse.FromString(body) if status == 200 else str(json.loads(body)["code"])


def ask_json(server: RetrievalServer, message: Message) -> Message | str:
    status, _, body = send(server, SEARCH, json_format.MessageToJson(message).encode(), "application/json")
    if status != 200:
        return str(json.loads(body)["code"])
    return json_format.Parse(body, retrieval_pb2.SearchResponse())


def ask_grpc_web(server: RetrievalServer, message: Message) -> Message | str:
    data = message.SerializeToString()
    status, headers, body = send(server, SEARCH, b"\0" + len(data).to_bytes(4, "big") + data, GRPC_WEB)
    assert status == 200
    answer, code = None, headers.get("grpc-status")
    while body:
        flags, size = body[0], int.from_bytes(body[1:5], "big")
        part, body = body[5 : 5 + size], body[5 + size :]
        if flags & 0x80:
            (code,) = [line[12:].strip() for line in part.decode().split("\r\n") if line.startswith("grpc-status:")]
        else:
            answer = retrieval_pb2.SearchResponse.FromString(part)
    if code != "0":
        return next(s.name.lower() for s in grpc.StatusCode if s.value[0] == int(code or -1))
    assert answer is not None
    return answer


FACES = (ask_grpc, ask_connect, ask_json, ask_grpc_web)


def comparable(answer: Message | str) -> Any:
    if isinstance(answer, str):
        return answer
    assert isinstance(answer, retrieval_pb2.SearchResponse)
    answer.ClearField("timing")
    return answer.SerializeToString(deterministic=True)


def test_every_form_answers_the_same(running: RetrievalServer, request_message: retrieval_pb2.SearchRequest) -> None:
    answers = [ask(running, request_message) for ask in FACES]
    assert all(isinstance(answer, Message) for answer in answers), answers
    assert len({comparable(answer) for answer in answers}) == 1
    assert len(answers[0].hits) == 5  # type: ignore[union-attr]


def ask_words(request: retrieval_pb2.SearchRequest) -> None:
    request.ClearField("tokens")
    request.text, request.modifier, request.offset = "is red", "", 2


def ask_from_the_gallery(request: retrieval_pb2.SearchRequest) -> None:
    request.ClearField("tokens")
    request.start_id, request.min_score = "left/01.png", -1.0
    request.preferences.add(id="right/02.png", weight=-0.5)


@pytest.mark.parametrize("change", [ask_words, ask_from_the_gallery])
def test_other_ways_to_ask_are_answered_the_same(
    running: RetrievalServer, request_message: retrieval_pb2.SearchRequest, change: Any
) -> None:
    change(request_message)
    answers = [ask(running, request_message) for ask in FACES]
    assert all(isinstance(answer, Message) and answer.hits for answer in answers), answers
    assert len({comparable(answer) for answer in answers}) == 1


def fp16(values: NDArray[np.float64], length: int | None = None, width: int | None = None) -> Any:
    return retrieval_pb2.SentenceTokens(
        length=values.shape[0] if length is None else length,
        width=values.shape[1] if width is None else width,
        fp16=values.astype("<f2").tobytes(),
    )


def int8(scales: list[float], model: TinyModel) -> Any:
    message = retrieval_pb2.SentenceTokens(length=2, width=model.word_width)
    message.int8.values = bytes(range(1, 2 * model.word_width + 1))
    message.int8.scales.extend(scales)
    return message


WRONG: dict[str, Any] = {
    "no tokens": lambda r, m: r.ClearField("tokens"),
    "nan": lambda r, m: r.tokens.CopyFrom(fp16(np.full((2, m.word_width), np.nan))),
    "infinity": lambda r, m: r.tokens.CopyFrom(fp16(np.full((2, m.word_width), np.inf))),
    "huge norm": lambda r, m: r.tokens.CopyFrom(int8([1e30, 1.0], m)),
    "nan scale": lambda r, m: r.tokens.CopyFrom(int8([float("nan"), 1.0], m)),
    "infinite scale": lambda r, m: r.tokens.CopyFrom(int8([float("inf"), 1.0], m)),
    "negative scale": lambda r, m: r.tokens.CopyFrom(int8([-1.0, 1.0], m)),
    "one scale": lambda r, m: r.tokens.CopyFrom(int8([1.0], m)),
    "too short": lambda r, m: r.tokens.CopyFrom(fp16(np.ones((2, m.word_width)), length=3)),
    "wrong width": lambda r, m: r.tokens.CopyFrom(fp16(np.ones((2, m.word_width + 1)))),
    "too long": lambda r, m: r.tokens.CopyFrom(fp16(np.ones((1000, m.word_width)))),
    "length 0": lambda r, m: r.tokens.CopyFrom(fp16(np.ones((2, m.word_width)), length=0)),
    "word space": lambda r, m: setattr(r, "word_space", "another"),
    "no word space": lambda r, m: setattr(r, "word_space", ""),
    "target space": lambda r, m: setattr(r, "target_space", "another"),
    "gallery": lambda r, m: setattr(r, "gallery", "another"),
    "top_k": lambda r, m: setattr(r, "top_k", 2**32 - 1),
    "excluded": lambda r, m: r.excluded_ids.extend(["x"] * 1001),
    "modifier": lambda r, m: setattr(r, "modifier", "x" * 100_000),
    "long modifier": lambda r, m: setattr(r, "modifier", "red " * 400),
    "filter": lambda r, m: setattr(r.filter.comparison, "key", "nothing"),
    "empty filter": lambda r, m: r.filter.SetInParent(),
    "text beside tokens": lambda r, m: setattr(r, "text", "a mug"),
    "start beside tokens": lambda r, m: setattr(r, "start_id", "left/01.png"),
    "weight": lambda r, m: r.preferences.add(id="left/01.png", weight=2.0),
    "score": lambda r, m: setattr(r, "min_score", float("nan")),
    "offset": lambda r, m: setattr(r, "offset", 2**32 - 1),
    "message": lambda r, m: setattr(r, "modifier", "x" * 5_000_000),
}
CODES = {
    "word space": "failed_precondition",
    "target space": "failed_precondition",
    "gallery": "not_found",
    "message": "resource_exhausted",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_is_refused_has_one_code_on_all(
    running: RetrievalServer, request_message: retrieval_pb2.SearchRequest, model: TinyModel, change: str
) -> None:
    WRONG[change](request_message, model)
    assert {ask.__name__: ask(running, request_message) for ask in FACES} == {
        ask.__name__: CODES.get(change, "invalid_argument") for ask in FACES
    }


def test_bytes_that_are_no_message_have_one_code(running: RetrievalServer) -> None:
    with grpc.insecure_channel(running.address) as channel:
        call = channel.unary_unary(SEARCH)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for kind, body in (("application/proto", b"\xff\xff\xff"), ("application/json", b"[" * 100_000)):
        status, _, answer = send(running, SEARCH, body, kind)
        assert (status, json.loads(answer)["code"]) == (400, "invalid_argument")
    assert send(running, SEARCH, b"x", "text/plain")[0] == 415
    assert send(running, "/asymcir.v1.Retrieval/Nothing", b"{}", "application/json")[0] == 404


def test_overload_deadline_and_draining_have_one_code(
    tmp_path: Path, gallery: Gallery, request_message: retrieval_pb2.SearchRequest, model: TinyModel, wait_until: Any
) -> None:
    slow = ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel(slow_steps=25)), threads=1)
    config = ServerConfig(limits=ServiceLimits(concurrency=1, max_in_flight=2), http=HttpConfig())
    request_message.with_metadata = False
    with RetrievalServer(slow, {"noise": gallery}, config) as server:
        data = request_message.SerializeToString()
        busy = [threading.Thread(target=send, args=(server, SEARCH, data, "application/proto")) for _ in range(2)]
        for thread in busy:
            thread.start()
        wait_until(lambda: server.service.admission._in_flight == 2)
        status, headers, _ = send(server, SEARCH, data, "application/proto")
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert headers["trailer-grpc-retry-pushback-ms"].isdigit()
        assert ask_grpc(server, request_message) == "resource_exhausted"
        for thread in busy:
            thread.join()
        status, _, body = send(server, SEARCH, data, "application/proto", connect_timeout_ms="1")
        assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
        assert ask_grpc(server, request_message, timeout=0.001) == "deadline_exceeded"
        server.service.admission.drain()
        assert [ask(server, request_message) for ask in FACES] == ["unavailable"] * 4


def test_changes_over_http_are_found_over_grpc(
    running: RetrievalServer, request_message: retrieval_pb2.SearchRequest, pictures: Path
) -> None:
    picture = base64.b64encode(sorted(pictures.rglob("*.png"))[0].read_bytes()).decode()
    message = json.dumps({"id": "new/ä", "image": picture, "metadataJson": '{"price": 3}'}).encode()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    status, _, answer = send(running, "/asymcir.v1.GalleryAdmin/AddPictures", body, "application/connect+json")
    assert status == 200 and b'"ADDED"' in answer, answer
    request_message.top_k = 100
    assert any(hit.id == "new/ä" for hit in ask_grpc(running, request_message).hits)  # type: ignore[union-attr]
    status, _, thumbnail = send(running, "/thumbnails/noise/new/%C3%A4")
    assert status == 200 and thumbnail[8:12] == b"WEBP"
    update = json.dumps({"updates": [{"id": "new/ä", "metadataJson": "{"}]}).encode()
    status, _, answer = send(running, "/asymcir.v1.GalleryAdmin/UpdateMetadata", update, "application/json")
    assert (status, json.loads(answer)["code"]) == (400, "invalid_argument")
    status, _, answer = send(
        running, "/asymcir.v1.GalleryAdmin/Remove", json.dumps({"ids": ["new/ä"]}).encode(), "application/json"
    )
    assert status == 200 and json.loads(answer)["removed"] == "1"
