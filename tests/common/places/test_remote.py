"""Pictures, lists, archives and Parquet files at URLs: a real HTTP server on this machine, and fsspec's memory."""

import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asymcir_common import ImageError, remote_files
from asymcir_common.places import Rejected, open_places
from asymcir_common.remote_files import join_url, name_of_url, read_url
from asymcir_server import ServerBundle, build_gallery
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery import open_source
from asymcir_server.gallery.sources import Entry
from PIL import Image
from tiny_server_bundle import TinyModel, write_tiny_bundle


class Site:
    """Files by path; `/status/N/...` answers N, `/flaky/...` every second time 503, `/slow/...` never."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests = Counter[str]()
        self.over = threading.Event()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                site.requests[path] += 1
                kind, _, rest = path.strip("/").partition("/")
                if kind == "slow":
                    site.over.wait(30)
                    return
                if kind == "status":
                    self.send_error(int(rest.partition("/")[0]))
                    return
                if kind == "flaky" and site.requests[path] % 2:
                    self.send_error(503)
                    return
                data = site.files.get("/" + rest if kind in ("flaky", "cut") else path)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote_files, "BACKOFF_S", 0.01)
    site = Site()
    yield site
    site.close()


@pytest.fixture
def bundle(tmp_path: Path) -> ServerBundle:
    return ServerBundle.load(write_tiny_bundle(tmp_path / "server", TinyModel()))


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), (shade, 20, 90)).save(stream, "PNG")
    return stream.getvalue()


def read(spec: object) -> dict[str, bytes]:
    return {item.id: item.read() for item in open_source(spec) if isinstance(item, Entry)}  # type: ignore[arg-type]


def files_of_each_kind() -> dict[str, bytes]:
    """A zip, a tar, a list and a Parquet file, of the same two pictures or naming them."""
    pictures = {"a.png": png(1), "b/c.png": png(2)}
    packed, taped, table = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in pictures.items():
            archive.writestr(name, data)
    with tarfile.open(fileobj=taped, mode="w") as tape:
        for name, data in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tape.addfile(member, io.BytesIO(data))
    pq.write_table(pa.table({"path": list(pictures)}), table)
    lines = "".join(json.dumps({"path": name}) + "\n" for name in pictures).encode()
    return pictures | {
        "p.zip": packed.getvalue(), "p.tar": taped.getvalue(), "p.parquet": table.getvalue(), "p.jsonl": lines,
    }  # fmt: skip


@pytest.mark.parametrize("where", ["http", "memory"])
@pytest.mark.parametrize("kind", ["zip", "tar", "parquet", "jsonl"])
def test_places_at_urls(site: Site, where: str, kind: str) -> None:
    files = files_of_each_kind()
    if where == "http":
        site.files = {f"/set/{name}": data for name, data in files.items()}
        url = f"{site.url}/set/p.{kind}"
    else:
        memory = fsspec.filesystem("memory")
        for name, data in files.items():
            memory.pipe_file(f"/set/{name}", data)
        url = f"memory://set/p.{kind}"
    assert read(url) == {"a.png": files["a.png"], "b/c.png": files["b/c.png"]}
    assert open_places(url).places[0].where == url
    if where == "http":
        assert read(f"{url}?signature=x/y.z") == read(url)
        several = read(f"{site.url}/{{set,flaky/set}}/p.{kind}")
        assert set(several) == {f"p.{kind}/a.png", f"p.{kind}/b/c.png"}
    else:
        assert set(read("memory://set/*.zip")) == {"a.png", "b/c.png"}


def test_a_list_here_names_pictures_there(site: Site, tmp_path: Path) -> None:
    site.files = {"/x/1.png": png(1), "/x/2.png": png(2)}
    (tmp_path / "local.png").write_bytes(png(3))
    names = [f"{site.url}/x/1.png", f"{site.url}/flaky/x/2.png", "local.png", f"{site.url}/gone.png", "ftp://h/4.png"]
    lines = [{"path": name, "price": number} for number, name in enumerate(names)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items = list(open_source(tmp_path / "list.jsonl"))
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert [item.reason for item in rejected] == [
        "URLs of the kind ftp:// are not read: expected http, https, s3 or gs"
    ]
    entries = [item for item in items if isinstance(item, Entry)]
    assert [entry.id for entry in entries] == names[:4]
    assert [entry.read() for entry in entries[:3]] == [png(1), png(2), png(3)]
    with pytest.raises(ImageError, match="there is no such file"):
        entries[3].read()
    assert site.requests["/gone.png"] == 1 and site.requests["/flaky/x/2.png"] == 2
    assert open_places(tmp_path / "list.jsonl").places[0].sizes().tolist() == [-1, -1, len(png(3)), -1]


def test_what_cannot_be_reached_goes_to_quarantine(
    site: Site, tmp_path: Path, bundle: ServerBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(remote_files, "TRIES", 2)
    site.files = {"/good.png": png(1), "/big.png": bytes(2 * 2**20)}
    monkeypatch.setattr("asymcir_common.places.lists.MAX_FILE_BYTES", 2**20)
    expected = {
        f"{site.url}/status/500/a.png": "the server answers 500",
        f"{site.url}/status/403/a.png": "the server answers 403",
        f"{site.url}/slow/a.png": "no answer in time",
        f"{site.url}/cut/good.png": "cannot read",
        f"{site.url}/big.png": "above 1 MiB",
        "http://127.0.0.1:1/a.png": "cannot read",
        "http://[bad/a.png": "cannot read",
    }
    names = [f"{site.url}/good.png", *expected]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"path": name}) for name in names))
    report = build_gallery(tmp_path / "list.jsonl", bundle, tmp_path / "g")
    lines = map(json.loads, (report.snapshot / "quarantine.jsonl").read_text().splitlines())
    found = {line["id"]: line["reason"] for line in lines}
    assert report.size == 1 and set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name], found[name]
    assert site.requests["/status/500/a.png"] == 2 and site.requests["/status/403/a.png"] == 1


def test_a_place_that_cannot_be_reached_is_an_error(site: Site, tmp_path: Path, bundle: ServerBundle) -> None:
    for url, reason in (
        (f"{site.url}/gone.zip", "there is no such file"),
        (f"{site.url}/status/500/a.jsonl", "the server answers 500"),
        (f"{site.url}/set/", "expected a .zip"),
        ("ftp://host/a.zip", "ftp:// are not read"),
        ("memory://nowhere/*.zip", "no file matches"),
    ):
        with pytest.raises(GalleryBuildError, match=reason):
            build_gallery(url, bundle, tmp_path / "g")
    assert not (tmp_path / "g").exists() and site.requests["/status/500/a.jsonl"] == remote_files.TRIES


def test_a_stream_without_an_end_is_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files = {"/a.png": bytes(100_000)}
    with pytest.raises(ImageError, match="above 0 MiB"):
        read_url(f"{site.url}/a.png", "a.png", most_bytes=1000)
    monkeypatch.setattr(remote_files, "PICTURE_TIMEOUT_S", -1.0)
    with pytest.raises(ImageError, match="did not come in"):
        read_url(f"{site.url}/a.png", "a.png", most_bytes=10**6)


def test_names_of_urls() -> None:
    assert name_of_url("https://h/a%20b/c.tar?x=/d.zip#e") == "c.tar" and name_of_url("s3://bucket/k/d.zip") == "d.zip"
    assert join_url("https://h/a/list.jsonl?sig=1", "p/1.png") == "https://h/a/p/1.png"
    assert join_url("s3://bucket/a/list.jsonl", "p/1.png") == "s3://bucket/a/p/1.png"
    assert join_url("s3://bucket/a/list.jsonl", "gs://other/1.png") == "gs://other/1.png"


def test_without_fsspec_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['fsspec'] = None; from asymcir_common.places import open_places\n"
        "try: open_places('https://127.0.0.1:1/a.zip')\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("PlaceError") and "pip install" in done.stdout and "[remote]'" in done.stdout


def test_downloads_are_removed_at_the_end(site: Site) -> None:
    site.files = {f"/{name}": data for name, data in files_of_each_kind().items()}
    code = (
        "import sys; from asymcir_common.places import open_places\n"
        "from asymcir_common import remote_files\n"
        "assert len(open_places(sys.argv[1])) == 2; print(remote_files._download_folder())"
    )
    command = [sys.executable, "-c", code, f"{site.url}/p.zip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not Path(done.stdout.strip()).exists()
