"""The one list format, read alike by training and gallery."""

import json
import zipfile
from pathlib import Path

import pytest
from asymcir_common import ImageError, PlaceError
from asymcir_common.places import MAX_ID_BYTES, Places, concept_of, open_places, parse_record
from asymcir_server.gallery import open_source
from asymcir_training import open_pictures


def write_list(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_training_and_gallery_see_the_same_ids_in_the_same_order(faces, write, tmp_path: Path) -> None:
    write("folder", tmp_path, {"a.png": b"a", "b.png": b"b"})
    write("zip", tmp_path, {"c.png": b"c"})
    listed = write_list(
        tmp_path / "list.jsonl",
        {"path": "pictures/b.png", "id": "second", "captions": ["b"], "concept": "letter", "year": 2020},
        {"image": "./pictures/a.png", "caption": "a"},
        {"path": "pictures.zip/c.png", "id": 7},
        {"path": "pictures/missing.png"},
        {"path": 3},
    )
    for specs in ([listed], [listed, tmp_path / "pictures"], [tmp_path / "pictures", f"{tmp_path}/*.zip"]):
        gallery, training = (face(specs) for face in faces)
        assert gallery.ids == training.ids and gallery.rejected == training.rejected
    gallery, training = (face([listed]) for face in faces)
    assert gallery.ids == ["second", "pictures/a.png", "7", "pictures/missing.png"]
    assert [gallery.read(n) for n in range(3)] == [training.read(n) for n in range(3)] == [b"b", b"a", b"c"]
    assert set(gallery.rejected) == {"list.jsonl:5"}
    pictures, entries = open_pictures([listed]), list(open_source(listed))
    assert pictures.captions(0) == ("b",) and pictures.concept(0) == "letter" and pictures.concept(1) is None
    assert entries[1].metadata == {"captions": ["b"], "concept": "letter", "year": 2020}
    assert entries[2].metadata == {"caption": "a"}


def test_with_several_places_an_id_that_a_list_gives_stays_as_it_is(face, write, tmp_path: Path) -> None:
    write("folder", tmp_path, {"a.png": b"a", "b.png": b"b"})
    listed = write_list(tmp_path / "x.jsonl", {"path": "pictures/a.png", "id": "sku"}, {"path": "pictures/b.png"}, [])
    found = face([listed, tmp_path / "pictures"])
    assert found.ids == ["sku", "x.jsonl/pictures/b.png", "pictures/a.png", "pictures/b.png"]
    assert set(found.rejected) == {"x.jsonl:3"}
    assert [found.read(number) for number in range(4)] == [b"a", b"b", b"a", b"b"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_may_lead_into_an_archive(kind: str, face, write, tmp_path: Path, monkeypatch) -> None:
    place = write(kind, tmp_path / "deep", {"a.png": b"a", "in/.hidden": b"any file"}).relative_to(tmp_path)
    (tmp_path / "folder.zip").mkdir()
    write(kind, tmp_path / "folder.zip", {"b.png": b"b"})
    (tmp_path / "folder.zip" / "c.png").write_bytes(b"c")
    paths = [f"{place}/a.png", f"./{place}/in/.hidden", f"folder.zip/pictures.{kind}/b.png", "folder.zip/c.png",
             str(tmp_path / place / "a.png"), f"{place}/none.png", f"{place}/../{place.name}/a.png"]  # fmt: skip
    listed = write_list(tmp_path / "list.jsonl", *({"path": path, "id": str(i)} for i, path in enumerate(paths)))
    found = face([listed])
    assert found.ids == [str(number) for number in range(7)] and found.rejected == {}
    assert [found.read(number) for number in range(5)] == [b"a", b"any file", b"b", b"c", b"a"]
    for number in (5, 6):
        with pytest.raises(ImageError, match=r"there is no .*\.png in"):
            found.read(number)

    def refuse(*_: object) -> None:
        raise AssertionError("a directory was read again")

    monkeypatch.setattr("asymcir_common.places.path_reading.read_directory", refuse)
    assert found.read(0) == b"a"


def test_lines_into_a_broken_archive_are_rejected_with_its_reason(face, write, tmp_path: Path) -> None:
    write("folder", tmp_path, {"a.png": b"a"})
    (tmp_path / "cut.zip").write_bytes(write("zip", tmp_path, {"a.png": b"a"}).read_bytes()[:-30])
    (tmp_path / "x.tar.gz").write_bytes(b"")
    paths = ("cut.zip/a.png", "x.tar.gz/a.png", "cut.zip/b.png", "pictures/a.png", "none.zip/a.png")
    found = face([write_list(tmp_path / "list.jsonl", *({"path": path} for path in paths))])
    assert found.ids == ["pictures/a.png", "none.zip/a.png"]
    reasons = [found.rejected[f"list.jsonl:{number}"] for number in (1, 2, 3)]
    assert all("ends early" in reason for reason in reasons[::2]) and "compressed" in reasons[1]
    with pytest.raises(ImageError, match=r"cannot read none\.zip/a\.png"):
        found.read(1)


def test_broken_lines_are_rejected_one_by_one(face, tmp_path: Path) -> None:
    lines = [
        b"{",
        b"[1]",
        b'{"id": "x"}',
        b'{"path": 3}',
        b'{"path": ""}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"path": "a.png", "id": null}',
        b'{"path": "a.png", "id": true}',
        b'{"path": "a.png", "id": ""}',
        json.dumps({"path": "a.png", "id": "i" * (MAX_ID_BYTES + 1)}).encode(),
        b'{"path": "\\ud800.png"}',
        b"not json",
        b'{"image": ""}',
        b'{"image": "a.png", "caption": 3}',
        b'{"image": "a.png", "captions": "one"}',
        b'{"image": "a.png", "concept": ["one"]}',
        b'{"image": "a.png", "caption": "\\ud800"}',
        b'{"image": "a\\u0000.png"}',
        b'{"path": "good.png", "caption": null}',
    ]
    path = tmp_path / "list.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = face([path])
    assert found.ids == ["good.png"]
    assert list(found.rejected) == [f"list.jsonl:{number}" for number in range(1, len(lines))]
    assert all(reason and "\n" not in reason for reason in found.rejected.values())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_list_in_utf16_is_named_as_such(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"path": "a.png"}\r\n', encoding=encoding)
    with pytest.raises(PlaceError, match=r"list\.jsonl is UTF-16: save it as UTF-8"):
        open_places(tmp_path / "list.jsonl")


def test_lines_of_one_picture_are_one_picture(tmp_path: Path) -> None:
    places: Places = open_places(
        write_list(
            tmp_path / "list.jsonl",
            {"path": "a.png", "caption": "one"},
            {"path": "b.png", "id": "a.png"},
            {"path": "./a.png", "caption": "two", "concept": "x"},
        )
    )
    assert list(places.ids) == ["a.png", "a.png"]
    place = places.places[0]
    assert [parse_record(line).get("caption") for line in place.lines(0)] == ["one", "two"]
    assert [concept_of(parse_record(line)) for line in place.lines(0)] == [None, "x"]
    assert [place.path(row) for row in range(2)] == ["a.png", "b.png"]


def test_a_list_names_members_of_a_zip_that_lies_elsewhere(face, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    with zipfile.ZipFile(tmp_path / "Pictures.ZIP", "w") as archive:
        archive.writestr("./a.png", b"a")
    listed = write_list(tmp_path / "lists" / "list.ndjson", {"path": "../Pictures.ZIP/a.png"})
    assert face([listed]).read(0) == b"a"
