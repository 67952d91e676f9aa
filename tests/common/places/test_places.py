"""Places by braces and globs, several together, and in other processes."""

import io
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from asymcir_common import AsymcirError, PlaceError
from asymcir_common.places import PathReader, find_pictures, open_places
from asymcir_training import open_pictures
from asymcir_training.pictures import PictureFiles

KINDS = ["folder", "zip", "tar"]


def test_shards_by_braces_and_globs_and_several_places_together(face, write, picture, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    for number in range(9, 12):
        (shards / str(number)).mkdir(parents=True)
        write("tar", shards / str(number), {"0.png": picture(number)}).rename(shards / f"{number:03}.tar")
    by_braces = face([f"{shards}/{{009..011}}.tar"])
    by_glob = face([f"{shards}/*.tar"])
    assert by_braces.ids == ["009.tar/0.png", "010.tar/0.png", "011.tar/0.png"] == by_glob.ids
    assert open_pictures([f"{shards}/{{009..011}}.tar"]).digest == open_pictures([f"{shards}/*.tar"]).digest
    assert [by_glob.read(i) for i in range(3)] == [picture(number) for number in (9, 10, 11)]
    mixed = face([write("folder", tmp_path, {"x.png": picture(1)}), f"{shards}/{{009,011}}.tar"])
    assert mixed.ids == ["pictures/x.png", "009.tar/0.png", "011.tar/0.png"]
    assert mixed.read(2) == picture(11)
    with pytest.raises(AsymcirError, match=r"012\.tar"):
        face([f"{shards}/{{009..012}}.tar"])
    with pytest.raises(AsymcirError, match="no file matches"):
        face([f"{shards}/*.zip"])


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(face, write, picture, tmp_path: Path) -> None:
    place = tmp_path / "a[1]{2}*"
    place.mkdir()
    assert face([str(write("folder", place, {"x.png": picture()}))]).ids == ["x.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pictures_of_a_place_by_their_paths(kind: str, write, picture, tmp_path: Path) -> None:
    files = {"b.png": picture(0), "a/c.png": picture(1), "a/c.txt": b"text", ".hidden.png": picture(2)}
    place = write(kind, tmp_path, files)
    found = find_pictures(place)
    assert found == [place / "a/c.png", place / "b.png"]
    assert [PathReader().read(path) for path in found] == [files["a/c.png"], files["b.png"]]
    assert find_pictures(tmp_path / "nowhere") == []
    (tmp_path / "list.jsonl").write_text('{"path": "b.png"}\n')
    with pytest.raises(PlaceError, match="is a list: expected a folder"):
        find_pictures(tmp_path / "list.jsonl")


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_pictures_are_read_in_other_processes(method: str, write, picture, tmp_path: Path) -> None:
    files = {"a.png": picture(0), "b.png": picture(1), "b.txt": b"two"}
    (tmp_path / "list.jsonl").write_text('{"image": "pictures/a.png"}\n')
    pictures = open_pictures([*(write(kind, tmp_path, files) for kind in KINDS), tmp_path / "list.jsonl"])
    expected = [pictures.read(i) for i in range(len(pictures))]  # opens the archives here first
    numbers = range(len(pictures))
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(pictures.read, numbers) == expected
    copied = pickle.loads(pickle.dumps(pictures))
    assert [copied.read(i) for i in range(7)] == expected and copied.digest == pictures.digest


def test_where_a_picture_lies_and_when_it_changed(write, tmp_path: Path) -> None:
    paths = [write(kind, tmp_path, {"a.png": b"abc"}) for kind in KINDS]
    lines = "".join(
        f'{{"path": "{name}/a.png"}}\n' for name in ("pictures", "pictures.zip", "pictures.tar", "none", "none.zip")
    )
    (tmp_path / "list.jsonl").write_text(lines)
    expected = []
    for number, path in enumerate(paths):
        file = path / "a.png" if path.is_dir() else path
        os.utime(file, ns=(0, 1000 + number))
        expected.append((f"{path}/a.png", 3, 1000 + number))
        assert open_places(path).places[0].stamp(0) == expected[-1]
    expected += [(f"{tmp_path}/none/a.png", -1, 0), (f"{tmp_path}/none.zip/a.png", -1, 0)]
    place = open_places(tmp_path / "list.jsonl").places[0]
    assert [place.stamp(row) for row in range(5)] == expected
    assert place.sizes().tolist() == [3, 3, 3, -1, -1]
    pictures, files = open_pictures([tmp_path / "list.jsonl"]), PictureFiles([path / "a.png" for path in paths])
    assert [pictures.place(number) for number in range(3)] == expected[:3] == [files.place(n) for n in range(3)]
    assert [files.read(number) for number in range(3)] == [b"abc"] * 3


def test_members_of_one_name_lie_in_different_places(write, tmp_path: Path) -> None:
    path = write("tar", tmp_path, {"a.png": b"abc", "b.png": b"b"})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"xyz"))
    place = open_places(path).places[0]
    first, second, other = (place.stamp(row) for row in range(3))
    assert first[0] != second[0] and first[1:] == second[1:] and other[0] == f"{path}/b.png"
    assert PathReader().stamp(path / "a.png") == first and PathReader().read(path / "a.png") == b"abc"


def test_names_with_single_or_unbalanced_braces_are_taken_as_they_stand(write, picture, tmp_path: Path) -> None:
    for name in ("a{1}", "b{", "c}d"):
        write("zip", tmp_path / name, {"x.png": picture()})
        assert len(open_places(f"{tmp_path}/{name}/*.zip")) == 1
    with pytest.raises(PlaceError, match=r"e\{ does not exist: expected a folder"):
        open_places(f"{tmp_path}/e{{")
    with pytest.raises(PlaceError, match=r"0 and 1 more do not exist, from .*/\{0,1\}: expected a folder"):
        open_places(f"{tmp_path}/{{0,1}}")
    (tmp_path / "one.png").write_bytes(picture())
    with pytest.raises(PlaceError, match=r"one\.png is a picture: expected a folder"):
        open_places(tmp_path / "one.png")


def test_a_place_without_pictures_is_none(write, tmp_path: Path) -> None:
    places = open_places([write("folder", tmp_path, {"a.txt": b"", "b.tar": b""}), write("zip", tmp_path, {"c": b""})])
    assert len(places) == 0 and places.rejected == []
    assert ["1 .tar, 1 .txt" in places.places[0].found, "1 (no suffix)" in places.places[1].found] == [True, True]
    with pytest.raises(IndexError):
        places.find(0)


def test_places_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("red/shoes", "blue/shoes", "hats"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(b"x")
        (folder / ".." / "same.jsonl").write_text('{"path": "shoes/1.png"}\n')
    folders = [tmp_path / name for name in ("red/shoes", "blue/shoes", "hats")]
    assert list(open_places(folders).ids) == ["red/shoes/1.png", "blue/shoes/1.png", "hats/1.png"]
    assert list(open_places(folders[:1]).ids) == ["1.png"]
    assert list(open_places(folders[1:]).ids) == ["shoes/1.png", "hats/1.png"]
    assert list(open_places([folders[0], str(folders[0])]).ids) == ["shoes/1.png"] * 2
    lists = [tmp_path / "red" / "same.jsonl", tmp_path / "blue" / "same.jsonl"]
    assert list(open_places(lists).ids) == ["red/same.jsonl/shoes/1.png", "blue/same.jsonl/shoes/1.png"]
