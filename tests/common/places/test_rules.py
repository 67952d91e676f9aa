"""Suffixes, sizes, links, hidden files, names: one rule on both faces."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from asymcir_common import ImageError
from asymcir_common.places import MAX_ID_BYTES, PICTURE_SUFFIXES

KINDS = ["folder", "zip", "tar"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_suffix_of_a_picture_is_taken_and_no_other(kind: str, face, write, tmp_path: Path) -> None:
    names = [f"{number}{suffix}" for number, suffix in enumerate(sorted(PICTURE_SUFFIXES))]
    others = ("a.txt", "b.json", "c.svg", "d.zip", "e", "f.png.part")
    found = face([write(kind, tmp_path, {name: name.encode() for name in (*names, "upper.PNG", *others)})])
    assert sorted(found.ids) == sorted([*names, "upper.PNG"]) and found.rejected == {}
    assert [found.read(number) for number in range(len(found.ids))] == [name.encode() for name in found.ids]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_are_left_out(kind: str, face, write, tmp_path: Path) -> None:
    names = ("b.PNG", "a/c.jpeg", "a/b/d.webp", ".hidden.png", ".git/e.png", "a/._c.jpeg", "__MACOSX/a.png", "a.md")
    found = face([write(kind, tmp_path, {name: name.encode() for name in names})])
    assert sorted(found.ids) == ["a/b/d.webp", "a/c.jpeg", "b.PNG"] and found.rejected == {}


def test_the_order_depends_on_the_names_alone(face, write, tmp_path: Path) -> None:
    names = ["b.png", "a/c.png", "a/b/d.png", "a.png"]
    files = dict.fromkeys(names, b"x")
    for kind, order in {"folder": ["a.png", "b.png", "a/c.png", "a/b/d.png"], "zip": sorted(names)}.items():
        for turn, given in enumerate((files, dict(reversed(files.items())))):
            assert face([write(kind, tmp_path / str(turn), given)]).ids == order


@pytest.mark.parametrize("kind", [*KINDS, "list", "list into zip", "list into tar"])
def test_files_above_the_limit_are_not_read(kind: str, face, write, tmp_path: Path, monkeypatch) -> None:
    place = write(kind.split()[-1].replace("list", "folder"), tmp_path, {"a.png": b"x" * 10, "b.png": b"x" * 11})
    if kind.startswith("list"):
        lines = [f'{{"path": "{place.name}/{name}.png"}}\n' for name in "ab"]
        place = tmp_path / "list.jsonl"
        place.write_text("".join(lines))
    monkeypatch.setattr("asymcir_common.places.file_reading.MAX_FILE_BYTES", 10)
    found = face([place])
    assert found.read(0) == b"x" * 10
    with pytest.raises(ImageError, match=r"b\.png is above"):
        found.read(1)


def test_links_to_files_are_followed_and_links_to_folders_are_not(face, write, tmp_path: Path) -> None:
    folder = write("folder", tmp_path, {"a.png": b"a", "deep/b.png": b"b"})
    elsewhere = write("folder", tmp_path / "elsewhere", {"c.png": b"c"})
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked.png").symlink_to(elsewhere / "c.png")
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    found = face([folder])
    assert sorted(found.ids) == ["a.png", "broken.png", "deep/b.png", "linked.png", "pipe.png"]
    assert found.read(found.ids.index("linked.png")) == b"c"
    assert set(found.rejected) == {"deep/loop", "linked"}
    assert all("link to a folder" in reason for reason in found.rejected.values())
    for name, reason in (("broken.png", "No such file"), ("pipe.png", "not a regular file")):
        with pytest.raises(ImageError, match=reason):
            found.read(found.ids.index(name))
    (tmp_path / "link").symlink_to(elsewhere)
    assert face([tmp_path / "link"]).ids == ["c.png"]  # the place itself may be one


def test_a_named_pipe_in_a_list_is_not_opened(face, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.jsonl").write_text('{"path": "pipe.png"}\n')
    with pytest.raises(ImageError, match=r"pipe\.png is not a regular file"):
        face([tmp_path / "list.jsonl"]).read(0)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_and_links_that_lead_out_of_an_archive_are_rejected(kind: str, face, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    names = ("./a.png", "././b/c.png", "../out.png", "b/../../out.png", "/etc/out.png", "../out.txt")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, name)
            link = zipfile.ZipInfo("link.png")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    else:
        with tarfile.open(path, "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(name)
                tar.addfile(info, io.BytesIO(name.encode()))
            special = tarfile.TarInfo("link.png")
            special.type, special.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(special)
    found = face([path])
    assert found.ids == ["a.png", "b/c.png"]
    assert [found.read(0), found.read(1)] == [b"./a.png", b"././b/c.png"]
    assert set(found.rejected) == {"../out.png", "b/../../out.png", "/etc/out.png", "link.png"}
    assert "leads out" in found.rejected["../out.png"] and "link" in found.rejected["link.png"]


def test_names_that_are_no_utf8_or_too_long_are_rejected(face, write, tmp_path: Path) -> None:
    bad = os.fsdecode(b"caf\xe9.png")
    long = "/".join(["n" * 200] * 6) + ".png"
    assert len(long) > MAX_ID_BYTES
    folder = write("folder", tmp_path, {"good.png": b"x", bad: b"x"})
    found = face([folder])
    assert found.ids == ["good.png"] and "UTF-8" in found.rejected[bad]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("good.png", bad, long):
            tar.addfile(tarfile.TarInfo(name))
    found = face([tmp_path / "a.tar"])
    assert found.ids == ["good.png"] and "UTF-8" in found.rejected[bad] and "expected an id" in found.rejected[long]
