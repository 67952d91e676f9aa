"""Folders, zips and lists: what they yield and what they reject."""

import json
import os
import zipfile
from pathlib import Path

import pytest
from asymcir_common import ImageError
from asymcir_common.places import Rejected
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery import open_source
from asymcir_server.gallery.sources import Entry


def entries(images: Path) -> list[Entry]:
    return [item for item in open_source(images) if isinstance(item, Entry)]


def rejected(images: Path) -> dict[str, str]:
    return {item.id: item.reason for item in open_source(images) if isinstance(item, Rejected)}


def test_a_folder_is_searched_recursively(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpeg", "a/b/d.webp", ".hidden.png", ".git/e.png", "notes.txt", "a/._c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(name.encode())
    found = entries(tmp_path)
    assert [entry.id for entry in found] == ["b.PNG", "a/c.jpeg", "a/b/d.webp"]
    assert [entry.read() for entry in found] == [b"b.PNG", b"a/c.jpeg", b"a/b/d.webp"]
    assert len(open_source(tmp_path)) == 3


def test_names_and_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert [reason for name, reason in rejected(tmp_path).items() if "UTF-8" in reason] != []
    by_id = {entry.id: entry for entry in entries(tmp_path)}
    for name, reason in (("gone.png", "cannot read"), ("pipe.png", "not a regular file")):
        with pytest.raises(ImageError, match=reason):
            by_id[name].read()


def test_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("b/2.png", "a.png", "readme.md", "__MACOSX/a.png", "b/.x.png", "b/"):
            archive.writestr(name, name)
    assert [(entry.id, entry.read()) for entry in entries(path)] == [("a.png", b"a.png"), ("b/2.png", b"b/2.png")]
    assert len(open_source(path)) == 2


def test_a_zip_with_a_damaged_entry(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"A" * 100)
        archive.writestr("b.png", b"B" * 100)
    path.write_bytes(path.read_bytes().replace(b"A" * 100, b"A" * 99 + b"C"))
    first, second = entries(path)
    with pytest.raises(ImageError, match=r"cannot unpack a\.png: Bad CRC"):
        first.read()
    assert second.read() == b"B" * 100


def test_a_list_with_metadata(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"one")
    records = [
        {"path": "1.png", "id": "first", "name": "café", "tags": ["a", {"b": None}], "year": 2020},
        {"path": str(tmp_path / "1.png")},
        {"path": "1.png", "id": 7},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    found = entries(path)
    assert [entry.id for entry in found] == ["first", str(tmp_path / "1.png"), "7"]
    assert found[0].metadata == {"name": "café", "tags": ["a", {"b": None}], "year": 2020}
    assert {entry.read() for entry in found} == {b"one"}
    assert len(open_source(path)) == 3


def test_metadata_that_no_answer_can_carry_is_rejected_line_by_line(tmp_path: Path) -> None:
    deep = '{"path": "x.png", "a": ' + "[" * 200 + "]" * 200 + "}"
    lines = [
        b'{"path": "a.png", "id": "nan", "x": NaN}',
        b'{"path": "a.png", "id": "huge", "x": 1' + b"0" * 400 + b"}",
        b'{"path": "a.png", "id": "surrogate", "x": "\\ud800"}',
        deep.encode(),
        b'{"path": "good.png"}',
    ]
    path = tmp_path / "list.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert [entry.id for entry in entries(path)] == ["good.png"]
    reasons = [item.reason for item in open_source(path) if isinstance(item, Rejected)]
    assert len(reasons) == len(lines) - 1
    assert all(reason and "\n" not in reason for reason in reasons)


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(GalleryBuildError):
            open_source(path)


def test_a_line_that_names_a_picture_again_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a.png", "x": 1}\n{"path": "b.png"}\n{"path": "./a.png", "x": 2}\n')
    assert [(entry.id, entry.metadata) for entry in entries(path)] == [("a.png", {"x": 1}), ("b.png", {})]
    assert "earlier line" in rejected(path)["a.png"] and len(open_source(path)) == 2


def test_lines_that_name_a_picture_again_are_listed_although_the_first_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a.png", "x": NaN}\n{"path": "a.png"}\n{"path": "b.png"}\n')
    found = [item for item in open_source(path) if isinstance(item, Rejected)]
    assert ["cannot be sent" in item.reason for item in found] == [True, False]
    assert "earlier line" in found[1].reason


def test_metadata_of_a_list_that_changed_since_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a.png"}\n{"path": "b.png"}\n')
    source = open_source(path)
    path.write_text('{"path": "a.png"}\n')
    first, second = source
    assert isinstance(first, Entry) and isinstance(second, Rejected) and "cut off" in second.reason
