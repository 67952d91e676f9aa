"""The page that the wheel carries is whole; that it works is what edge/web/browser tests."""

import gzip
import json
import re
from pathlib import Path

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
    assert listed == {name for name in there if name != "sw.js" and not name.endswith(".txt")}


def test_the_page_carries_the_licences_of_the_packages_in_it_and_the_notice_names_them() -> None:
    text = (PAGE_FOLDER / "THIRD-PARTY-LICENSES.txt").read_text()
    bundled = re.findall(r"^(\S+): (?:MIT|Apache-2\.0)", text, re.MULTILINE)
    assert len(bundled) >= 7
    for sentence in (
        "Permission is hereby granted",
        "Redistribution and use in source",
        "TERMS AND CONDITIONS FOR USE",
    ):
        assert sentence in text
    notice = (Path(__file__).parents[4] / "NOTICE").read_text()
    assert [name for name in bundled if name not in notice] == []
    assert "protocolbuffers/protobuf" in (PAGE_FOLDER / "runtime/THIRD-PARTY-NOTICES.txt").read_text()


def test_the_runtime_is_webassembly() -> None:
    (packed,) = (PAGE_FOLDER / "runtime").glob("*.wasm.gz")
    assert gzip.decompress(packed.read_bytes())[:4] == b"\0asm"


def test_the_page_without_a_bundle_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["serve", "--server-bundle", "none", "--gallery", "none", "--http", "0", "--web"])
    assert code != 0
    assert "--device-bundle FOLDER" in capsys.readouterr().err
