"""The page that the wheel carries is whole; that it works is what edge/web/browser tests."""

import gzip
import json
import re

import pytest
from asymcir_edge.cli import main
from asymcir_server.commands import PAGE_FOLDER


def test_the_page_and_its_files_are_there() -> None:
    index = (PAGE_FOLDER / "index.html").read_text()
    named = re.findall(r'(?:src|href)="\./([^"]+)"', index)
    assert len(named) >= 4
    for name in named:
        assert (PAGE_FOLDER / name).is_file(), name


def test_the_service_worker_keeps_every_file() -> None:
    worker = (PAGE_FOLDER / "sw.js").read_text()
    found = re.search(r"const FILES = (\[.*\]);", worker)
    assert found is not None
    listed = {name.removeprefix("./") or "index.html" for name in json.loads(found[1])}
    there = {path.relative_to(PAGE_FOLDER).as_posix() for path in PAGE_FOLDER.rglob("*") if path.is_file()}
    assert listed == there - {"sw.js"}


def test_the_runtime_is_webassembly() -> None:
    (packed,) = (PAGE_FOLDER / "runtime").glob("*.wasm.gz")
    assert gzip.decompress(packed.read_bytes())[:4] == b"\0asm"


def test_the_page_without_a_bundle_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["serve", "--server-bundle", "none", "--gallery", "none", "--http", "0", "--web"])
    assert code != 0
    assert "--device-bundle FOLDER" in capsys.readouterr().err
