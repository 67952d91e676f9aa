"""Rates of keys: buckets against a clock, the file, the command, and both faces."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from asymcir_server.errors import KeysError, RateLimitError
from asymcir_server.serve.http import HttpConfig
from asymcir_server.serve.security import Key, create_key, read_keys
from asymcir_server.serve.security.rates import RateLimits


def make_key(rate: float | None, identity: str = "00000001") -> Key:
    return Key(id=identity, name="a", role="search", digest="0" * 64, created="", rate=rate)


def count_taken(limits: RateLimits, key: Key, tries: int) -> int:
    taken = 0
    for _ in range(tries):
        try:
            limits.take(key)
            taken += 1
        except RateLimitError:
            pass
    return taken


def test_a_bucket_fills_at_its_rate_and_holds_a_second() -> None:
    clock = [100.0]
    limits, key = RateLimits(now=lambda: clock[0]), make_key(4.0)
    assert count_taken(limits, key, 10) == 4
    with pytest.raises(RateLimitError, match="4 times a second") as caught:
        limits.take(key)
    assert caught.value.retry_after_ms == 250
    clock[0] += 0.25
    assert count_taken(limits, key, 10) == 1
    clock[0] += 60.0
    assert count_taken(limits, key, 10) == 4
    assert count_taken(limits, make_key(4.0, "00000002"), 10) == 4  # another key has its own
    assert count_taken(limits, make_key(None), 100) == 100
    assert count_taken(limits, make_key(2.0), 10) == 2  # the file gave the key another rate


def test_a_rate_below_one_a_second() -> None:
    clock = [0.0]
    limits, key = RateLimits(now=lambda: clock[0]), make_key(0.5)
    assert count_taken(limits, key, 3) == 1
    clock[0] += 1.9
    assert count_taken(limits, key, 3) == 0
    clock[0] += 0.1
    assert count_taken(limits, key, 3) == 1


def test_the_file_and_the_command(tmp_path: Path, run_asymcir: Callable) -> None:
    keys = tmp_path / "keys.json"
    run_asymcir("keys", "create", "--keys", keys, "--name", "phones", "--rate", "2.5")
    create_key(keys, name="free", role="search")
    assert [key.rate for key in read_keys(keys)] == [2.5, None]
    assert "rate" not in json.loads(keys.read_text())["keys"][1]  # older servers read it
    assert "2.5 calls a second" in run_asymcir("keys", "list", "--keys", keys).stdout
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(KeysError, match="rate"):
            create_key(keys, name="a", role="search", rate=wrong)
    record = json.loads(keys.read_text())
    record["keys"][0]["rate"] = "many"
    keys.write_text(json.dumps(record))
    with pytest.raises(KeysError, match="rate"):
        read_keys(keys)


def test_both_faces_refuse_with_a_time_to_wait(bundle: ServerBundle, gallery: Gallery, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    slow = create_key(keys, name="slow", role="search", rate=0.001)
    other = create_key(keys, name="other", role="search", rate=0.001)
    free = create_key(keys, name="free", role="search")
    with RetrievalServer(bundle, {"noise": gallery}, ServerConfig(keys=keys, http=HttpConfig())) as server:

        def ask_grpc(key: str) -> None:
            with grpc.insecure_channel(server.address) as channel:
                retrieval_pb2_grpc.RetrievalStub(channel).Describe(
                    retrieval_pb2.DescribeRequest(), metadata=[("authorization", f"Bearer {key}")], timeout=20
                )

        def ask_http(key: str) -> None:
            url = f"http://{server.http_address}/asymcir.v1.Retrieval/Describe"
            headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
            urllib.request.urlopen(urllib.request.Request(url, data=b"{}", headers=headers), timeout=20).close()

        ask_grpc(slow)
        with pytest.raises(grpc.RpcError) as refused:
            ask_grpc(slow)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"]
        assert 900_000 < int(hint) <= 1_000_000
        with pytest.raises(urllib.error.HTTPError) as answered:  # one bucket for both faces
            ask_http(slow)
        assert answered.value.code == 429 and int(answered.value.headers["retry-after"]) > 900
        ask_http(other)
        for _ in range(5):
            ask_grpc(free)
