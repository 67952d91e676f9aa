import json
import logging
import os
import zipfile
from pathlib import Path

import pytest
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from asymcir_training.errors import DataError
from asymcir_training.pictures.sets import open_pictures

SPEC = Preprocessing(size=24, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
KINDS = ["folder", "zip", "tar"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_gives_its_pictures_with_texts_and_leaves_out_the_rest(kind, write, picture, tmp_path: Path) -> None:
    files = {
        "a.png": picture(0),
        "a.txt": "\ufeffa red cat\n\n  a cat \n".encode(),
        "deep/er/b.JPG": picture(1, form="JPEG"),
        "deep/er/b.json": json.dumps({"caption": "a dog", "captions": ["two\ndogs", ""], "id": 7}).encode(),
        "ünï/猫.png": picture(2),
        "ünï/猫.txt": b"",
        ".hidden.png": picture(3),
        ".git/c.png": picture(3),
        "__MACOSX/._a.png": b"resource fork",
        "notes.md": b"no picture",
    }
    pictures = open_pictures([str(write(kind, tmp_path, files))])
    assert sorted(pictures.keys) == ["a.png", "deep/er/b.JPG", "ünï/猫.png"] and len(pictures) == 3
    number = {key: i for i, key in enumerate(pictures.keys)}
    assert pictures.captions(number["a.png"]) == ("a red cat", "a cat")
    assert pictures.captions(number["deep/er/b.JPG"]) == ("a dog", "two dogs")
    assert pictures.record(number["deep/er/b.JPG"])["id"] == 7
    assert pictures.captions(number["ünï/猫.png"]) == () and pictures.record(number["a.png"]) == {}
    for key, i in number.items():
        assert pictures.read(i) == files[key]
        expected = preprocess(decode_image(files[key]), SPEC)
        assert (pictures.decode(i, SPEC) == expected).all()
    assert pictures.keys[-1] == list(pictures.keys)[2] and pictures.keys[:2] == list(pictures.keys)[:2]
    with pytest.raises(IndexError):
        pictures.read(3)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_pictures_raise_and_are_named(kind, write, corrupt, picture, tmp_path: Path) -> None:
    pictures = open_pictures([write(kind, tmp_path, {**corrupt, "good.png": picture()})])
    for number, key in enumerate(pictures.keys):
        if key == "good.png":
            assert pictures.decode(number, SPEC).shape == (24, 24, 3)
        else:
            with pytest.raises(ImageError, match=key.replace(".", r"\.")):
                pictures.decode(number, SPEC)


def test_texts_that_are_damaged_are_left_out_with_a_warning(write, picture, tmp_path: Path, caplog) -> None:
    files = {"a.png": picture(), "a.json": b'{"caption": ', "b.png": picture(1), "b.json": b"[1]", "b.txt": b"caf\xe9"}
    pictures = open_pictures([write("tar", tmp_path, files)])
    with caplog.at_level(logging.WARNING):
        assert pictures.record(0) == {} and pictures.captions(0) == ()
    assert "a.png" in caplog.text
    assert pictures.record(1) == {} and pictures.captions(1) == ("caf\ufffd",)


def test_the_same_pictures_have_the_same_keys_and_digest_wherever_they_lie(write, picture, tmp_path: Path) -> None:
    files = {"b.png": picture(0), "a/c.png": picture(1)}
    one = write("folder", tmp_path / "one", files)
    other = write("folder", tmp_path / "other", dict(reversed(files.items())))
    os.utime(other / "b.png", (1, 1))
    first, second = open_pictures([one]), open_pictures([other])
    assert list(first.keys) == list(second.keys) and first.digest == second.digest
    (other / "b.png").write_bytes(picture(0) + b" ")
    assert open_pictures([other]).digest != first.digest
    (other / "b.png").write_bytes(picture(0))
    (other / "b.png").rename(other / "d.png")
    assert open_pictures([other]).digest != first.digest


def test_a_list_takes_paths_from_its_own_folder_and_joins_the_captions_of_a_picture(
    write, picture, tmp_path: Path
) -> None:
    folder = write("folder", tmp_path, {"a.png": picture(0), "b.png": picture(1)})
    lines = [
        {"image": "pictures/a.png", "caption": "one", "split": "x"},
        {"image": "pictures/b.png", "captions": ["two", "three"]},
        {"image": "./pictures/a.png", "caption": "four"},
        {"image": "pictures/missing.png"},
    ]
    listed = tmp_path / "list.jsonl"
    listed.write_text("\ufeff" + "\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    pictures = open_pictures([listed])
    assert list(pictures.keys) == ["pictures/a.png", "pictures/b.png", "pictures/missing.png"]
    assert pictures.captions(0) == ("one", "four") and pictures.captions(1) == ("two", "three")
    assert pictures.record(0)["split"] == "x" and pictures.read(1) == (folder / "b.png").read_bytes()
    with pytest.raises(ImageError, match=r"missing\.png"):
        pictures.read(2)


@pytest.mark.parametrize(
    "line",
    ["not json", "[1]", '{"text": "a.png"}', '{"image": ""}', '{"image": "a.png", "caption": 3}',
     '{"image": "a.png", "captions": "one"}', '{"image": "a\\u0000.png"}'],
)  # fmt: skip
def test_a_wrong_line_of_a_list_is_named_with_file_and_line(line: str, tmp_path: Path, caplog) -> None:
    listed = tmp_path / "list.jsonl"
    listed.write_text('{"image": "a.png"}\n\n' + line + "\n")
    with caplog.at_level(logging.WARNING):
        pictures = open_pictures([listed])
    assert list(pictures.keys) == ["a.png"] and "list.jsonl:3" in caplog.text
    assert [key for key, _ in pictures.problems] == ["list.jsonl:3"]
    listed.write_text("\n\n" + line + "\n")
    with pytest.raises(DataError, match=r"list\.jsonl:3"):
        open_pictures([listed])


def test_many_wrong_lines_are_counted_rather_than_logged_one_by_one(tmp_path: Path, caplog) -> None:
    (tmp_path / "list.jsonl").write_text('{"path": "a.png"}\n' + "wrong\n" * 100)
    with caplog.at_level(logging.WARNING):
        pictures = open_pictures([tmp_path / "list.jsonl"])
    assert len(pictures.problems) == 100 and "and 80 more" in caplog.text and len(caplog.records) == 21


@pytest.mark.parametrize("kind", KINDS)
def test_a_concept_comes_from_a_list_or_a_record(kind, write, picture, tmp_path: Path) -> None:
    files = {"a.png": picture(), "a.json": b'{"concept": "x"}', "b.png": picture(1), "b.json": b'{"concept": 3}'}
    place = write(kind, tmp_path, files)
    lines = [{"path": f"{place.name}/b.png"}, {"path": f"{place.name}/b.png", "concept": "y"}]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    pictures = open_pictures([place, tmp_path / "list.jsonl"])
    assert [pictures.concept(number) for number in range(3)] == ["x", None, "y"]


def test_keys_that_come_twice_are_told_apart(write, picture, tmp_path: Path, caplog) -> None:
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    first = write("folder", tmp_path / "1", {"x.png": picture(1), "y.png": picture(3)})
    second = write("folder", tmp_path / "2", {"x.png": picture(2)})
    with caplog.at_level(logging.WARNING):
        pictures = open_pictures([first, second, first])
    keys = ["1/pictures/x.png", "1/pictures/y.png", "2/pictures/x.png", "1/pictures/x.png#2", "1/pictures/y.png#2"]
    assert list(pictures.keys) == keys and "2 pictures" in caplog.text
    assert pictures.read(2) == picture(2)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("x.png", picture(1))
        archive.writestr("x.png", picture(2))
    twice = open_pictures([tmp_path / "z.zip"])
    assert list(twice.keys) == ["x.png", "x.png#2"] and twice.read(1) == picture(2)


@pytest.mark.parametrize(
    ("files", "found"),
    [({}, "found nothing"), ({"a.txt": b"x", "s-0.tar": b"x", "s-1.tar": b"x"}, r"2 \.tar, 1 \.txt")],
)
def test_a_folder_without_pictures_says_what_it_has(files, found, write, tmp_path: Path) -> None:
    folder = write("folder", tmp_path, files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=found) as caught:
        open_pictures([folder])
    assert ("pass" in str(caught.value)) == bool(files)


def test_what_is_no_place_for_pictures_is_refused(write, picture, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"")
    (tmp_path / "x.rar").write_bytes(b"")
    (tmp_path / "cut.zip").write_bytes(write("zip", tmp_path, {"a.png": picture()}).read_bytes()[:-30])
    (tmp_path / "bad.tar").write_bytes(b"x" * 5000)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_text("\n")
    write("zip", tmp_path, {"a.txt": b"no picture"})
    for name, reason in {
        "nowhere": "does not exist", "x.tar.gz": "compressed", "x.rar": "expected a folder", "cut.zip": "cut off",
        "bad.tar": "cannot read the archive", "empty.tar": "cannot read the archive", "empty.jsonl": "no picture in",
        "pictures.zip": r"found 1 \.txt",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=reason) as caught:
            open_pictures([str(tmp_path / name)])
        assert name in str(caught.value)
    with pytest.raises(DataError, match="no pictures were named"):
        open_pictures([])
