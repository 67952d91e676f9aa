"""Galleries changed through a running server, and servers that follow what is on disk."""

import json
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from asymcir_edge import (
    GalleryAdmin,
    NewPicture,
    RequestRefusedError,
    RetrievalClient,
    ServerError,
    ServerOverloadedError,
)
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig, build_gallery
from asymcir_server.gallery import BuildConfig, GalleryHolder, add_pictures, compact_gallery, edit_gallery
from asymcir_server.gallery.history import remove_old_snapshots, rollback, verify_snapshots
from asymcir_server.serve.admin import MAX_ADMIN_REQUESTS
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def folder(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> Path:
    build_gallery(pictures, bundle, tmp_path / "g", config=BuildConfig(thumbnail_side=16))
    return tmp_path / "g"


@pytest.fixture
def running(folder: Path, bundle: ServerBundle) -> Iterator[RetrievalServer]:
    holder = GalleryHolder(Gallery.open(folder, bundle.target_spaces))
    with RetrievalServer(bundle, {"g": holder}, ServerConfig(admin=True)) as server:
        yield server


@pytest.fixture
def client(running: RetrievalServer) -> Iterator[RetrievalClient]:
    with RetrievalClient(running.address) as opened:
        yield opened


@pytest.fixture
def find(client: RetrievalClient, tokens: NDArray[np.float32], model: TinyModel) -> Callable[..., dict[str, Any]]:
    """Search for everything; id -> metadata."""

    def search(**options: Any) -> dict[str, Any]:
        result = client.search(tokens, model.word_space, top_k=500, with_metadata=True, **options)
        return {hit.id: hit.metadata for hit in result.hits}

    return search


def new_pictures(pictures: Path, count: int, **metadata: Any) -> list[NewPicture]:
    files = sorted(pictures.rglob("*.png"))[:count]
    return [NewPicture(id=f"new{n}", image=path.read_bytes(), metadata=metadata) for n, path in enumerate(files)]


def test_changes_through_the_server_are_found_at_once_and_are_there_after_it(
    client: RetrievalClient, find: Callable[..., dict[str, Any]], folder: Path, pictures: Path, bundle: ServerBundle
) -> None:
    admin = GalleryAdmin(client)
    before = find()
    big = 2**53 + 1
    new = new_pictures(pictures, 20, price=3, big=big)
    broken = NewPicture(id="broken", image=b"no picture")
    found = {one.id: one for one in admin.add([*new, broken])}
    assert {one.status for name, one in found.items() if name != "broken"} == {"added"}
    assert found["broken"].status == "rejected" and "cannot" in found["broken"].reason
    assert find().keys() == before.keys() | {one.id for one in new}
    assert find(where="price < 4").keys() == {one.id for one in new}
    assert find(where=f"big = {big}")["new0"]["big"] == str(big)  # whole numbers stay whole
    assert {one.status for one in admin.add(new)} == {"unchanged"}
    clash = NewPicture(id="new0", image=new[1].image)
    assert [one.status for one in admin.add([clash])] == ["rejected"]
    assert [one.status for one in admin.add([clash], replace=True)] == ["replaced"]
    assert admin.update_metadata({"new1": {"price": 9, "big": None}, "nobody": {"a": 1}}) == (1, ["nobody"])
    assert find(where="price = 9") == {"new1": {"price": 9}}
    assert admin.remove(["new2", "nobody"]) == (1, ["nobody"])
    assert admin.remove(where="price = 3") == (17, [])
    assert find().keys() == before.keys() | {"new0", "new1"}
    gallery = Gallery.open(folder)
    assert gallery.thumbnail("new0") is not None and gallery.size == len(before) + 2
    gallery.close()
    report = admin.compact()
    assert (report.gallery_version, report.size, report.added) == ("000002", len(before) + 2, 2)
    assert find().keys() == before.keys() | {"new0", "new1"} and client.describe().galleries[0].version == "000002"
    merged = Gallery.open(folder, bundle.target_spaces)
    assert merged.thumbnail("new0") is not None and merged.metadata(["new1"]) == [{"price": 9}]
    merged.close()


def test_what_does_not_fit_is_refused(client: RetrievalClient, folder: Path) -> None:
    admin = GalleryAdmin(client)
    with pytest.raises(RequestRefusedError, match="either ids or a filter"):
        admin.remove()
    with pytest.raises(RequestRefusedError, match="cannot filter by"):
        admin.remove(where="price < 3")
    with pytest.raises(RequestRefusedError, match="index kind"):
        admin.compact(index_kind="tree")
    with pytest.raises(RequestRefusedError, match="no gallery named"):
        list(GalleryAdmin(client, "other").add([NewPicture(id="a", image=b"")]))
    assert [one.status for one in admin.add([NewPicture(id="x" * 2000, image=b"")])] == ["rejected"]
    with (
        edit_gallery(folder, "gallery add"),
        pytest.raises(RequestRefusedError, match=r"`asymcir gallery add`, process"),
    ):
        client.timeout_s = 1.0
        admin.remove(["a"])


def test_idle_and_broken_streams_hold_up_neither_other_callers_nor_the_end(
    running: RetrievalServer, client: RetrievalClient, pictures: Path
) -> None:
    stub = retrieval_pb2_grpc.GalleryAdminStub(client.channel)
    stop = threading.Event()

    def trickle(number: int) -> Iterator[retrieval_pb2.AddPicturesRequest]:
        yield retrieval_pb2.AddPicturesRequest(id=f"t{number}", image=next(pictures.rglob("*.png")).read_bytes())
        stop.wait(30)

    streams = [stub.AddPictures(trickle(number)) for number in range(MAX_ADMIN_REQUESTS)]
    assert [next(stream).id for stream in streams] == [f"t{n}" for n in range(MAX_ADMIN_REQUESTS)]  # not kept waiting
    admin = GalleryAdmin(client)
    with pytest.raises(ServerOverloadedError, match="try again in 1 s") as refused:
        admin.remove(["t0"])
    assert refused.value.retry_after_s == 1.0
    streams[0].cancel()
    deadline_s = time.monotonic() + 10
    while True:  # until the server has noticed
        try:
            assert admin.remove(["t0"]) == (1, [])
            break
        except ServerOverloadedError:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    started_s = time.monotonic()
    running.stop()
    with pytest.raises(grpc.RpcError) as ended:
        next(streams[1])
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started_s < 20  # the streams idle, so their 30 seconds need not pass
    stop.set()


def test_a_server_without_admin_does_not_offer_it(server: RetrievalServer) -> None:
    with RetrievalClient(server.address) as client, pytest.raises(RequestRefusedError, match="another version"):
        GalleryAdmin(client).remove(["a"])


def test_a_running_server_follows_changes_snapshots_rollback_and_gc_without_a_failed_request(
    client: RetrievalClient,
    find: Callable[..., dict[str, Any]],
    folder: Path,
    pictures: Path,
    bundle: ServerBundle,
    tmp_path: Path,
    wait_until: Wait,
) -> None:
    before, errors, stop = find(), list[Exception](), threading.Event()
    answers = [0]

    def ask() -> None:
        while not stop.is_set():
            try:
                assert len(find()) >= len(before) - 3
                answers[0] += 1
            except Exception as exc:  # collected, and looked at below
                errors.append(exc)

    readers = [threading.Thread(target=ask) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        (tmp_path / "more").mkdir()
        shutil.copy(sorted(pictures.rglob("*.png"))[0], tmp_path / "more/added.png")
        assert add_pictures(folder, tmp_path / "more", bundle).added == 1
        wait_until(lambda: "added.png" in find())
        with edit_gallery(folder, "test") as editor:
            editor.remove(sorted(before)[:3])
        wait_until(lambda: len(find()) == len(before) - 2)
        compact_gallery(folder)
        wait_until(lambda: client.describe().galleries[0].version == "000002")
        assert len(find()) == len(before) - 2
        build_gallery(pictures, bundle, folder)
        wait_until(lambda: client.describe().galleries[0].version == "000003")
        rollback(folder, "2")
        wait_until(lambda: client.describe().galleries[0].version == "000002")
        rollback(folder, "1", discard_changes=True)
        wait_until(lambda: client.describe().galleries[0].version.startswith("000001"))
        wait_until(lambda: find().keys() == before.keys())
        rollback(folder, "3")
        remove_old_snapshots(folder, keep=1)
        wait_until(lambda: client.describe().galleries[0].version == "000003")
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not errors and answers[0] > 10


def test_a_damaged_snapshot_another_space_and_a_missing_folder_leave_the_old_one_serving(
    client: RetrievalClient,
    find: Callable[..., dict[str, Any]],
    folder: Path,
    pictures: Path,
    bundle: ServerBundle,
    tmp_path: Path,
    wait_until: Wait,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = find()
    spare = tmp_path / "spare"
    shutil.copytree(folder, spare)
    with caplog.at_level(logging.WARNING):
        build_gallery(pictures, bundle, spare)
        vectors = spare / "snapshots/000002/vectors.npy"
        data = bytearray(vectors.read_bytes())
        data[-1] ^= 1
        vectors.write_bytes(data)
        shutil.copytree(spare / "snapshots/000002", folder / "snapshots/000002")
        (folder / "CURRENT").write_text("000002\n")
        wait_until(lambda: "vectors.npy" in caplog.text)
        assert "stays at 000001" in caplog.text and find() == before
        assert client.describe().galleries[0].version == "000001"
        shutil.rmtree(folder)
        wait_until(lambda: "no finished gallery" in caplog.text)
        assert find() == before
        build_gallery(pictures, bundle, folder, config=BuildConfig(target="original"))  # of a space that it makes too
        wait_until(lambda: client.describe().galleries[0].target == "original")
        assert find().keys() == before.keys()
        other = tmp_path / "other"
        build_gallery(pictures, bundle, other)
        manifest = other / "snapshots/000001/manifest.json"
        record = json.loads(manifest.read_text())
        record["properties"]["target_space"] = "of another model"
        manifest.write_text(json.dumps(record))
        shutil.rmtree(folder)
        shutil.copytree(other, folder)
        wait_until(lambda: "of another model" in caplog.text)
        assert client.describe().galleries[0].target == "original" and find().keys() == before.keys()


def test_a_server_that_does_not_follow_keeps_what_it_opened(
    folder: Path, pictures: Path, bundle: ServerBundle, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    gallery = Gallery.open(folder, bundle.target_spaces)
    with (
        RetrievalServer(bundle, {"g": gallery}, ServerConfig(follow=False)) as server,
        RetrievalClient(server.address) as client,
    ):
        with edit_gallery(folder, "test") as editor:
            editor.remove([next(iter(editor.gallery.search(np.ones((1, 16), np.float32), 1).ids[0]))])
        time.sleep(0.6)
        assert len(client.search(tokens, model.word_space, top_k=500).hits) == gallery.size
    assert gallery.search(np.ones((1, gallery.embedding_width), np.float32), 1).ids[0]  # whoever opened it closes it
    gallery.close()


def test_what_a_killed_server_acknowledged_is_there(
    folder: Path,
    pictures: Path,
    bundle_folder: Path,
    start_asymcir: Callable[..., subprocess.Popen[str]],
    wait_until: Wait,
    tmp_path: Path,
) -> None:
    port_file = tmp_path / "port"
    options = ("--admin", "--port", 0, "--port-file", port_file, "--threads", 1)
    server = start_asymcir("serve", "--server-bundle", bundle_folder, "--gallery", folder, *options)
    wait_until(lambda: port_file.exists() and port_file.read_text() != "")
    acknowledged = list[str]()
    with RetrievalClient(f"127.0.0.1:{port_file.read_text().strip()}") as client:
        images = [path.read_bytes() for path in sorted(pictures.rglob("*.png"))]
        many = (NewPicture(id=f"k{n}", image=images[n % len(images)]) for n in range(100_000))
        with pytest.raises(ServerError):
            for picture in GalleryAdmin(client).add(many):
                acknowledged.append(picture.id)
                if len(acknowledged) == 100:
                    server.kill()
    verify_snapshots(folder)
    gallery = Gallery.open(folder)
    assert gallery.rows(acknowledged).keys() == set(acknowledged) and gallery.size >= 40 + len(acknowledged)
    assert gallery.size - 40 - len(acknowledged) <= 2 * 16  # at most the batches that were under way
    gallery.close()
