"""Describe and Search over real gRPC on the loopback, and what each bad request is answered."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from asymcir_common import FilterTextError
from asymcir_common.errors import RETRY_AFTER_KEY
from asymcir_edge import RequestRefusedError, RetrievalClient, SearchResult
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig, ServiceLimits, build_gallery
from asymcir_server.errors import (
    ListenError,
    OverloadedError,
    RequestError,
    SpaceMismatchError,
    UnavailableError,
)
from asymcir_server.serve.admission import Admission
from asymcir_server.serve.service import RetrievalService
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel, write_tiny_bundle


@pytest.fixture
def ask(stub: retrieval_pb2_grpc.RetrievalStub, model: TinyModel, tokens: NDArray[np.float32]) -> Callable[..., Any]:
    """Search with a good request, changed where the test says so."""

    def call(**changes: Any) -> retrieval_pb2.SearchResponse:
        fields = {"tokens": pack_tokens(tokens), "word_space": model.word_space, "top_k": 5, **changes}
        return stub.Search(retrieval_pb2.SearchRequest(**fields), timeout=10)

    return call


def naive_ids(model: TinyModel, gallery: Gallery, tokens: NDArray[np.float32], modifier: str, top_k: int) -> list[str]:
    query = model.text_features(model.compose(tokens, modifier))
    vectors = np.load(gallery.folder / "snapshots" / gallery.version / "vectors.npy")
    order = np.argsort(-(vectors @ query))[:top_k]
    names = gallery._metadata.ids(order.tolist())
    return [names[row] for row in order.tolist()]


def test_describe(
    stub: retrieval_pb2_grpc.RetrievalStub, bundle: ServerBundle, gallery: Gallery, model: TinyModel
) -> None:
    answer = stub.Describe(retrieval_pb2.DescribeRequest())
    assert answer.word_space == model.word_space
    assert answer.word_width == model.word_width
    assert answer.limits.context_length == model.context_length
    assert answer.limits.max_sentence_length == model.context_length - 5
    (only,) = answer.galleries
    assert (only.name, only.version, only.size) == ("noise", "000001", gallery.size)
    assert (only.target, only.target_space) == ("union", model.target_spaces["union"])
    assert only.index_recall_at_10 == 1.0


@pytest.mark.parametrize("encoding", ["fp16", "int8"])
@pytest.mark.parametrize("modifier", ["", "  ", "red hair", "is not blue", "👩🏽‍🦰"])
def test_search_matches_the_reference(
    ask, model: TinyModel, gallery: Gallery, tokens: NDArray[np.float32], encoding: Any, modifier: str
) -> None:
    message = pack_tokens(tokens, encoding)
    answer = ask(tokens=message, modifier=modifier)
    if encoding == "fp16":
        sent = tokens.astype(np.float16).astype(np.float32)
    else:
        sent = (
            np.frombuffer(message.int8.values, np.int8).reshape(tokens.shape) * np.array(message.int8.scales)[:, None]
        )
    assert [hit.id for hit in answer.hits] == naive_ids(model, gallery, sent.astype(np.float32), modifier, 5)
    assert answer.gallery == "noise"
    assert answer.gallery_version == "000001"
    assert answer.timing.encode_ms > 0
    assert answer.timing.search_ms > 0
    assert answer.timing.queue_ms >= 0
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True)


def test_top_k_exclusion_and_metadata(
    tmp_path: Path, bundle: ServerBundle, model: TinyModel, tokens: NDArray[np.float32], pictures: Path
) -> None:
    source = tmp_path / "list.jsonl"
    source.write_text(
        "\n".join(
            f'{{"path": "{path}", "id": "{path.stem}", "n": {i}, "tags": ["x", null]}}'
            for i, path in enumerate(sorted(pictures.rglob("*.png")))
        )
    )
    build_gallery(source, bundle, tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g", bundle.target_spaces)
    service = RetrievalService(bundle, {"g": gallery})
    request = retrieval_pb2.SearchRequest(tokens=pack_tokens(tokens), word_space=model.word_space)
    ten = service.search(request)
    assert len(ten.hits) == 10
    assert not any(hit.HasField("metadata") for hit in ten.hits)
    request.excluded_ids.extend([ten.hits[0].id, "unknown"])
    request.top_k, request.with_metadata = 1000, True
    rest = service.search(request)
    assert list(rest.warnings) == ["excluded ids that the gallery does not hold: 'unknown'"] and not ten.warnings
    with pytest.raises(RequestError, match="expected a list of excluded ids"):
        gallery.search(np.ones((1, gallery.embedding_width), np.float32), 3, "00")
    assert len(rest.hits) == 39
    assert [hit.id for hit in rest.hits][:9] == [hit.id for hit in ten.hits][1:]
    assert MessageToDict(rest.hits[0].metadata)["tags"] == ["x", None]
    gallery.close()


def test_filters_items_and_whole_numbers(
    tmp_path: Path, bundle: ServerBundle, model: TinyModel, tokens: NDArray[np.float32], pictures: Path
) -> None:
    lines = [
        {"path": str(path), "id": path.stem, "n": i, "big": 9007199254740993 + i, "item": f"item {i // 4}"}
        for i, path in enumerate(sorted(pictures.rglob("*.png")))
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_gallery(tmp_path / "list.jsonl", bundle, tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g", bundle.target_spaces)
    with RetrievalServer(bundle, {"g": gallery}) as running, RetrievalClient(running.address) as client:

        def search(**options: Any) -> SearchResult:
            return client.search(tokens, model.word_space, top_k=40, with_metadata=True, **options)

        described = client.describe()
        (only,) = described.galleries
        assert only.has_items
        assert dict(only.columns) == {"big": "integer", "item": "text", "n": "integer"}
        assert (described.limits.max_filter_conditions, described.limits.max_filter_depth) == (64, 16)
        everything = search(every_picture=True)
        assert len(everything.hits) == 40
        first = {hit.item: hit.id for hit in reversed(everything.hits)}
        assert [hit.id for hit in search().hits] == [hit.id for hit in everything.hits if first[hit.item] == hit.id]
        some = search(where="n < 10 and big != 9007199254740994 or item in ('item 9')", every_picture=True)
        expected = [hit for hit in everything.hits if hit.metadata["n"] in (0, *range(2, 10), 36, 37, 38, 39)]
        assert [hit.id for hit in some.hits] == [hit.id for hit in expected]
        for hit in some.hits:  # as it was in the list: an int, and beyond 2^53 a text of its digits
            assert json.dumps(hit.metadata["n"]) == str(int(hit.metadata["n"]))
            assert hit.metadata["big"] == str(9007199254740993 + hit.metadata["n"])
        for where, message in (("m = 1", "cannot filter by 'm'"), ("n = 'x'", "expected a number for 'n'")):
            with pytest.raises(RequestRefusedError, match=message):
                search(where=where)
        with pytest.raises(RequestRefusedError, match="at most 16 filters inside each other"):
            search(where="not " * 20 + "n = 1")
        with pytest.raises(FilterTextError, match="column 4"):
            search(where="n <")
    gallery.close()


REFUSALS = {
    "no word space": ({"word_space": ""}, "INVALID_ARGUMENT", "word_space"),
    "another word space": ({"word_space": "abc"}, "FAILED_PRECONDITION", "word_space abc, this server in"),
    "another target space": ({"target_space": "abc"}, "FAILED_PRECONDITION", "target_space abc, the gallery is of"),
    "no gallery": ({"gallery": "nope"}, "NOT_FOUND", "no gallery named 'nope': this server holds noise"),
    "top_k": ({"top_k": 1001}, "INVALID_ARGUMENT", "at most 1000, got 1001"),
    "excluded": ({"excluded_ids": ["x"] * 1001}, "INVALID_ARGUMENT", "at most 1000 excluded"),
    "10,000 characters": ({"modifier": "y" * 10_000}, "INVALID_ARGUMENT", "10000 bytes, the limit is 8192"),
    "3,000 emoji": ({"modifier": "😀" * 3000}, "INVALID_ARGUMENT", "12000 bytes"),
    "too many words": ({"modifier": "red " * 100}, "INVALID_ARGUMENT", "100 tokens and 12 are left"),
    "no tokens": ({"tokens": retrieval_pb2.SentenceTokens()}, "INVALID_ARGUMENT", "width 12, got 0"),
    "width": ({"tokens": pack_tokens(np.ones((6, 13), np.float32))}, "INVALID_ARGUMENT", "width 12, got 13"),
    "length": ({"tokens": pack_tokens(np.ones((20, 12), np.float32))}, "INVALID_ARGUMENT", "1 to 19 sentence tokens"),
    "payload": (
        {"tokens": retrieval_pb2.SentenceTokens(length=6, width=12, fp16=b"123")},
        "INVALID_ARGUMENT",
        "144 bytes",
    ),
    "NaN": (
        {"tokens": retrieval_pb2.SentenceTokens(length=1, width=12, fp16=b"\xff" * 24)},
        "INVALID_ARGUMENT",
        "finite",
    ),
    "overflow": (
        {
            "tokens": retrieval_pb2.SentenceTokens(
                length=1, width=12, int8=retrieval_pb2.Int8Tokens(values=b"\x7f" * 12, scales=[3e38])
            )
        },
        "INVALID_ARGUMENT",
        "finite",
    ),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_refusals(ask, case: str) -> None:
    changes, code, text = REFUSALS[case]
    with pytest.raises(grpc.RpcError) as caught:
        ask(**changes)
    assert caught.value.code().name == code
    assert text in caught.value.details()
    assert "\n" not in caught.value.details()


def test_metadata_that_does_not_fit_the_answer_is_left_out_with_a_mark(
    tmp_path: Path, bundle: ServerBundle, model: TinyModel, tokens: NDArray[np.float32], pictures: Path
) -> None:
    picture = next(pictures.rglob("*.png"))
    source = tmp_path / "list.jsonl"
    records: list[dict[str, Any]] = [{"path": str(picture), "id": str(i), "t": "x" * 36_000} for i in range(150)]
    records.append({"path": str(picture), "id": "nothing known"})
    records.append({"path": str(picture), "id": "poison", "t": "x" * 4_300_000})
    source.write_text("\n".join(json.dumps(record) for record in records))
    report = build_gallery(source, bundle, tmp_path / "g")
    assert (report.size, report.quarantined) == (151, 1)
    assert "metadata has" in (report.snapshot / "quarantine.jsonl").read_text()
    gallery = Gallery.open(tmp_path / "g", bundle.target_spaces)
    with RetrievalServer(bundle, {"g": gallery}) as server, RetrievalClient(server.address) as client:
        full = client.search(tokens, model.word_space, top_k=151, with_metadata=True)
        plain = client.search(tokens, model.word_space, top_k=151)
    gallery.close()
    assert [hit.id for hit in full.hits] == [hit.id for hit in plain.hits]
    assert all(hit.metadata is None and not hit.metadata_left_out for hit in plain.hits)
    by_id = {hit.id: hit for hit in full.hits}
    assert by_id.pop("nothing known").metadata == {}
    left_out = [hit.metadata_left_out for hit in full.hits if hit.id in by_id]
    assert left_out == sorted(left_out)  # the best hits keep theirs
    assert 100 <= left_out.count(False) < 150
    assert all((hit.metadata is None) == hit.metadata_left_out for hit in by_id.values())


def test_hits_that_do_not_fit_the_answer_are_refused(
    tmp_path: Path, bundle: ServerBundle, model: TinyModel, tokens: NDArray[np.float32], pictures: Path
) -> None:
    picture = next(pictures.rglob("*.png"))
    source = tmp_path / "list.jsonl"
    source.write_text("\n".join(json.dumps({"path": str(picture), "id": f"{i:04}" + "x" * 1020}) for i in range(4200)))
    build_gallery(source, bundle, tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g", bundle.target_spaces)
    limits = ServerConfig(limits=ServiceLimits(max_top_k=10_000))
    with RetrievalServer(bundle, {"g": gallery}, limits) as server, RetrievalClient(server.address) as client:
        with pytest.raises(RequestRefusedError, match="ask for fewer hits"):
            client.search(tokens, model.word_space, top_k=4200)
        assert len(client.search(tokens, model.word_space, top_k=1000).hits) == 1000
    gallery.close()


def test_an_unknown_error_is_internal_with_an_id(ask, gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    gallery.close()  # the metadata's connection is gone beneath the server
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "sqlite" not in caught.value.details().lower()
    error_id = caught.value.details().split()[2].rstrip(":")
    (record,) = [record for record in caplog.records if error_id in record.getMessage()]
    assert record.exc_info is not None


def test_the_first_gallery_answers_and_others_by_name(
    tmp_path: Path,
    bundle: ServerBundle,
    gallery: Gallery,
    model: TinyModel,
    tokens: NDArray[np.float32],
    pictures: Path,
) -> None:
    build_gallery(pictures / "left", bundle, tmp_path / "g")
    other = Gallery.open(tmp_path / "g", bundle.target_spaces)
    service = RetrievalService(bundle, {"all": gallery, "left": other})
    request = retrieval_pb2.SearchRequest(tokens=pack_tokens(tokens), word_space=model.word_space)
    assert service.search(request).gallery == "all"
    request.gallery, request.target_space = "left", model.target_spaces["union"]
    assert service.search(request).gallery == "left"
    other.close()


def test_a_service_needs_galleries_of_its_space(tmp_path: Path, bundle: ServerBundle, gallery: Gallery) -> None:
    with pytest.raises(ListenError, match="at least one gallery"):
        RetrievalService(bundle, {})
    other = ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel(seed=8)))
    with pytest.raises(SpaceMismatchError, match="build the gallery again"):
        RetrievalService(other, {"noise": gallery})


def test_many_callers_get_their_own_answers(ask, model: TinyModel, gallery: Gallery) -> None:
    rows = np.random.default_rng(0).standard_normal((48, 6, 12)).astype(np.float16).astype(np.float32)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: ask(tokens=pack_tokens(row), modifier="red"), rows))
    for row, answer in zip(rows, answers, strict=True):
        assert [hit.id for hit in answer.hits] == naive_ids(model, gallery, row, "red", 5)


def test_admission_bounds_what_is_in_flight() -> None:
    admission = Admission(max_in_flight=2)
    with admission.admit(), admission.admit():
        with pytest.raises(OverloadedError) as caught, admission.admit():
            pass
        assert caught.value.retry_after_ms > 0
        admission.drain()
        with pytest.raises(UnavailableError), admission.admit():
            pass
        assert not admission.wait_until_idle(0.01)
    assert admission.wait_until_idle(0.0)


def test_overload_is_refused_with_a_hint(
    tmp_path: Path, gallery: Gallery, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    bundle = ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel(slow_steps=12)), threads=1)
    request = retrieval_pb2.SearchRequest(tokens=pack_tokens(tokens), word_space=model.word_space)
    config = ServerConfig(limits=ServiceLimits(concurrency=1, max_in_flight=2))
    with (
        RetrievalServer(bundle, {"noise": gallery}, config) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = retrieval_pb2_grpc.RetrievalStub(channel)
        calls = [stub.Search.future(request) for _ in range(8)]
        codes = [call.code() for call in calls]
        refused = [call for call in calls if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert codes.count(grpc.StatusCode.OK) >= 2
    assert len(refused) == len(calls) - codes.count(grpc.StatusCode.OK) >= 1
    assert dict(refused[0].trailing_metadata())[RETRY_AFTER_KEY].isdigit()


@pytest.mark.parametrize(
    "limits",
    [
        {"max_top_k": 0},
        {"max_top_k": 10**6},
        {"concurrency": 8, "max_in_flight": 4},
        {"concurrency": 1000, "max_in_flight": 1000},
        {"max_in_flight": 10**5},
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, int]) -> None:
    with pytest.raises(ListenError):
        ServiceLimits(**limits)
