"""Keys: their file, the command, roles on both faces, revocation while the server runs."""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from asymcir_edge import (
    AccessDeniedError,
    AsyncRetrievalClient,
    Credentials,
    CredentialsError,
    GalleryAdmin,
    RetrievalClient,
)
from asymcir_protos import pack_tokens
from asymcir_protos.v1 import retrieval_pb2
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig
from asymcir_server.errors import KeysError, ListenError
from asymcir_server.serve.http import HttpConfig
from asymcir_server.serve.security import KeyStore, TlsConfig, create_key, read_keys, revoke_key
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def search_key(keys: Path) -> str:
    return create_key(keys, name="phones", role="search")


@pytest.fixture
def admin_key(keys: Path, search_key: str) -> str:
    return create_key(keys, name="ops", role="admin")


@pytest.fixture
def running(bundle: ServerBundle, gallery: Gallery, keys: Path, admin_key: str) -> Iterator[RetrievalServer]:
    config = ServerConfig(admin=True, keys=keys, http=HttpConfig())
    with RetrievalServer(bundle, {"noise": gallery}, config) as server:
        yield server


def ask_http(server: RetrievalServer, path: str, key: str | None, body: bytes | None = b"{}") -> tuple[int, str]:
    headers = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    try:
        asked = urllib.request.Request(f"http://{server.http_address}{path}", data=body, headers=headers)
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, "ok"
    except urllib.error.HTTPError as exc:
        text = exc.read()
        return exc.code, json.loads(text)["code"] if text.startswith(b"{") else text.decode()


def test_the_file_holds_no_key_and_is_read_by_its_owner_only(keys: Path, search_key: str, admin_key: str) -> None:
    text = keys.read_text()
    assert search_key not in text and search_key.split("_", 2)[2] not in text
    assert keys.stat().st_mode & 0o077 == 0
    assert [(key.name, key.role) for key in read_keys(keys)] == [("phones", "search"), ("ops", "admin")]
    store = KeyStore(keys)
    found = store.find(search_key)
    assert found is not None and found.name == "phones"
    mixed = search_key.rsplit("_", 1)[0][:11] + admin_key[11:]
    for wrong in ("", "ak", search_key[:-1], search_key + "A", search_key[:-1] + "!", search_key.upper(), mixed):
        assert store.find(wrong) is None


def test_the_command_makes_lists_and_revokes(keys: Path, run_asymcir: Callable) -> None:
    made = run_asymcir("keys", "create", "--keys", keys, "--name", "phones", "--role", "admin")
    key = made.stdout.strip()
    assert KeyStore(keys).find(key) is not None, made.stderr
    listed = run_asymcir("keys", "list", "--keys", keys).stdout
    assert "phones" in listed and "admin" in listed and key not in listed
    (record,) = json.loads(run_asymcir("keys", "list", "--keys", keys, "--json").stdout)
    assert (record["name"], record["role"], record["id"]) == ("phones", "admin", key.split("_")[1])
    assert set(record) == {"id", "role", "created", "name", "rate"}
    other = json.loads(run_asymcir("keys", "create", "--keys", keys, "--name", "b", "--json").stdout)["key"].split("_")[
        1
    ]
    gone = json.loads(run_asymcir("keys", "revoke", "--keys", keys, other, "--json").stdout)
    assert gone["revoked"]["name"] == "b"
    assert "revoked" in run_asymcir("keys", "revoke", "--keys", keys, key.split("_")[1]).stdout
    assert read_keys(keys) == [] and KeyStore(keys).find(key) is None
    assert run_asymcir("keys", "revoke", "--keys", keys, "00000000").returncode != 0


def test_wrong_names_and_files(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="name"):
        create_key(keys, name="a b", role="search")
    with pytest.raises(KeysError, match="role"):
        create_key(keys, name="a", role="root")  # type: ignore[arg-type]
    for text in ("", "[]", "{}", '{"format": "asymcir.keys", "version": 1, "keys": [{}]}'):
        keys.write_text(text)
        with pytest.raises(KeysError, match="no file of"):
            KeyStore(keys)
    with pytest.raises(KeysError, match="cannot read"):
        KeyStore(tmp_path / "nothing")


def test_roles_over_grpc(
    running: RetrievalServer, search_key: str, admin_key: str, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    for key in ("", "wrong", search_key[:-1] + ("A" if search_key[-1] != "A" else "B")):
        with RetrievalClient(running.address, credentials=Credentials(key=key)) as client:
            with pytest.raises(AccessDeniedError):
                client.describe()
            with pytest.raises(AccessDeniedError):
                GalleryAdmin(client).remove(["nothing"])
    with RetrievalClient(running.address, credentials=Credentials(key=search_key)) as client:
        assert len(client.search(tokens, model.word_space).hits) == 10
        with pytest.raises(AccessDeniedError, match="role admin"):
            GalleryAdmin(client).remove(["nothing"])
        with pytest.raises(AccessDeniedError, match="role admin"):
            list(GalleryAdmin(client).add([]))
    with RetrievalClient(running.address, credentials=Credentials(key=admin_key)) as client:
        assert GalleryAdmin(client).remove(["nothing"]) == (0, ["nothing"])
        assert client.describe().word_space == model.word_space


def test_roles_over_http(running: RetrievalServer, search_key: str, admin_key: str) -> None:
    describe, remove = "/asymcir.v1.Retrieval/Describe", "/asymcir.v1.GalleryAdmin/Remove"
    ids = b'{"ids": ["nothing"]}'
    assert ask_http(running, describe, None) == (401, "unauthenticated")
    assert ask_http(running, describe, "wrong") == (401, "unauthenticated")
    assert ask_http(running, describe, search_key)[0] == 200
    assert ask_http(running, remove, search_key, ids) == (403, "permission_denied")
    assert ask_http(running, remove, admin_key, ids)[0] == 200
    assert ask_http(running, "/thumbnails/noise/x", None, None) == (401, "unauthenticated")
    assert ask_http(running, "/thumbnails/noise/x", search_key, None) == (404, "not_found")
    assert ask_http(running, "/healthz", None, None)[0] == ask_http(running, "/readyz", None, None)[0] == 200


def test_a_stranger_cannot_make_the_server_decode(running: RetrievalServer) -> None:
    with grpc.insecure_channel(running.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/asymcir.v1.Retrieval/Search")(b"\xff" * 1000)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_revoked_and_new_keys_while_the_server_runs(
    running: RetrievalServer, keys: Path, search_key: str, wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    describe = "/asymcir.v1.Retrieval/Describe"
    later = create_key(keys, name="later", role="search")
    wait_until(lambda: ask_http(running, describe, later)[0] == 200)
    revoke_key(keys, search_key.split("_")[1])
    wait_until(lambda: ask_http(running, describe, search_key)[0] == 401)
    with caplog.at_level(logging.ERROR):
        keys.write_text("half a fi")
        wait_until(lambda: ask_http(running, describe, later)[0] == 200 and "stay as they were" in caplog.text)


def test_nothing_secret_is_logged(
    running: RetrievalServer, search_key: str, tokens: NDArray[np.float32], model: TinyModel,
    caplog: pytest.LogCaptureFixture, gallery: Gallery,
) -> None:  # fmt: skip
    with (
        caplog.at_level(logging.DEBUG),
        RetrievalClient(running.address, credentials=Credentials(key=search_key)) as client,
    ):
        client.search(tokens, model.word_space, modifier="red")
        packed = retrieval_pb2.SearchRequest(
            tokens=pack_tokens(tokens), word_space=model.word_space, modifier="secretly"
        )
        gallery.close()  # the next search fails inside
        with pytest.raises(Exception, match="internal error"):
            client.search(tokens, model.word_space, modifier=packed.modifier, with_metadata=True)
    assert "internal error" in caplog.text
    for secret in (search_key, search_key.split("_", 2)[2], "secretly"):
        assert secret not in caplog.text


def test_the_client_for_asyncio(
    running: RetrievalServer, search_key: str, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    async def ask() -> tuple[int, int]:
        async with AsyncRetrievalClient(running.address, credentials=Credentials(key=search_key)) as client:
            results = await asyncio.gather(*(client.search(tokens, model.word_space, top_k=3) for _ in range(8)))
            description = await client.describe()
        with pytest.raises(AccessDeniedError):
            async with AsyncRetrievalClient(running.address) as client:
                await client.describe()
        return sum(len(result.hits) for result in results), len(description.galleries)

    assert asyncio.run(ask()) == (24, 1)


def test_a_key_is_not_sent_unencrypted_to_another_machine() -> None:
    with pytest.raises(CredentialsError, match="unencrypted"):
        RetrievalClient("shop.example:443", credentials=Credentials(key="x"))
    RetrievalClient("shop.example:443", credentials=Credentials(key="x", tls=True)).close()
    RetrievalClient("[::1]:443", credentials=Credentials(key="x")).close()
    for wrong in ({"key": "a\nb"}, {"certificate": Path("x")}):
        with pytest.raises(CredentialsError):
            Credentials(**wrong)  # type: ignore[arg-type]


def test_addresses_of_the_network_need_tls_and_changes_need_keys(keys: Path) -> None:
    tls = TlsConfig(certificate=keys, private_key=keys)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ListenError, match="nothing would be encrypted"):
            ServerConfig(host=host)
        with pytest.raises(ListenError, match="change the galleries"):
            ServerConfig(host=host, tls=tls, admin=True)
        ServerConfig(host=host, tls=tls, admin=True, keys=keys)
        ServerConfig(host=host, allow_plaintext=True)
    for host in ("127.0.0.1", "localhost", "::1"):
        ServerConfig(host=host, admin=True)
