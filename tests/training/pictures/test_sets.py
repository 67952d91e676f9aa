import io
import json
import logging
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import ImageError, Preprocessing, decode_image, preprocess
from asymcir_training.batches.workers import run_jobs
from asymcir_training.errors import DataError
from asymcir_training.pictures.sets import ArrayPictures, PictureSet, open_pictures

SPEC = Preprocessing(size=24, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
KINDS = ["folder", "zip", "tar"]


def _info(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


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


def test_links_are_followed_and_a_loop_ends(write, picture, tmp_path: Path) -> None:
    folder = write("folder", tmp_path, {"a.png": picture(0), "deep/b.png": picture(1)})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.png").write_bytes(picture(2))
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    pictures = open_pictures([folder])
    assert sorted(pictures.keys) == ["a.png", "broken.png", "deep/b.png", "linked/c.png", "pipe.png"]
    for key, reason in (("broken.png", "No such file"), ("pipe.png", "not a regular file")):
        with pytest.raises(ImageError, match=reason):
            pictures.read(list(pictures.keys).index(key))


def test_names_that_are_no_utf8_are_carried(picture, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(picture())
    pictures = open_pictures([tmp_path])
    assert os.fsencode(pictures.keys[0]) == b"caf\xe9.png" and pictures.read(0) == picture()


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
    ["not json", "[1]", '{"path": "a.png"}', '{"image": ""}', '{"image": "a.png", "caption": 3}',
     '{"image": "a.png", "captions": "one"}', '{"image": "a\\u0000.png"}'],
)  # fmt: skip
def test_a_wrong_line_of_a_list_is_named_with_file_and_line(line: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    listed.write_text('{"image": "a.png"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=r"list\.jsonl:3"):
        open_pictures([listed])


def test_shards_by_braces_and_globs_and_several_places_together(write, picture, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    for number in range(9, 12):
        (shards / str(number)).mkdir(parents=True)
        write("tar", shards / str(number), {"0.png": picture(number)}).rename(shards / f"{number:03}.tar")
    by_braces = open_pictures([f"{shards}/{{009..011}}.tar"])
    by_glob = open_pictures([f"{shards}/*.tar"])
    assert list(by_braces.keys) == ["009.tar/0.png", "010.tar/0.png", "011.tar/0.png"] == list(by_glob.keys)
    assert by_braces.digest == by_glob.digest
    assert [by_glob.read(i) for i in range(3)] == [picture(number) for number in (9, 10, 11)]
    mixed = open_pictures([write("folder", tmp_path, {"x.png": picture(1)}), f"{shards}/{{009,011}}.tar"])
    assert list(mixed.keys) == ["pictures/x.png", "009.tar/0.png", "011.tar/0.png"]
    assert mixed.read(2) == picture(11)
    with pytest.raises(DataError, match=r"012\.tar"):
        open_pictures([f"{shards}/{{009..012}}.tar"])
    with pytest.raises(DataError, match="no file matches"):
        open_pictures([f"{shards}/*.zip"])


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(write, picture, tmp_path: Path) -> None:
    place = tmp_path / "a[1]{2}*"
    place.mkdir()
    assert len(open_pictures([str(write("folder", place, {"x.png": picture()}))])) == 1


def test_keys_that_come_twice_are_told_apart(write, picture, tmp_path: Path, caplog) -> None:
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    first = write("folder", tmp_path / "1", {"x.png": picture(1), "y.png": picture(3)})
    second = write("folder", tmp_path / "2", {"x.png": picture(2)})
    with caplog.at_level(logging.WARNING):
        pictures = open_pictures([first, second, first])
    keys = ["pictures/x.png", "pictures/y.png", "pictures/x.png#2", "pictures/x.png#3", "pictures/y.png#2"]
    assert list(pictures.keys) == keys and "3 pictures" in caplog.text
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
        "nowhere": "no pictures at", "x.tar.gz": "compressed", "x.rar": "expected a folder", "cut.zip": "cut off",
        "bad.tar": "cannot read the archive", "empty.tar": "cannot read the archive", "empty.jsonl": "no picture in",
        "pictures.zip": r"found 1 \.txt",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=reason) as caught:
            open_pictures([str(tmp_path / name)])
        assert name in str(caught.value)
    with pytest.raises(DataError, match="no pictures were named"):
        open_pictures([])


def test_damaged_and_encrypted_members_of_a_zip_fail_alone(write, picture, tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number, size=(60, 60)) for number in range(5)}
    path = write("zip", tmp_path, files)
    with zipfile.ZipFile(path) as archive:
        offsets = [info.header_offset for info in archive.infolist()]
    data = bytearray(path.read_bytes())
    data[offsets[1] + 80] ^= 0xFF  # packed data
    data[offsets[2]] ^= 0xFF  # the member's own header
    entry = data.rfind(b"PK\x01\x02", 0, data.rfind(b"4.png"))
    data[entry + 8] |= 1  # the directory's flag of encryption
    path.write_bytes(bytes(data))
    pictures = open_pictures([path])
    assert pictures.read(0) == files["0.png"] and pictures.read(3) == files["3.png"]
    for number, reason in ((1, "unpack"), (2, "damaged header"), (4, "encrypted")):
        with pytest.raises(ImageError, match=reason):
            pictures.read(number)


def test_zips_as_other_programs_write_them(picture, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.comment = b"a comment PK\x05 of the archive"
        with archive.open("streamed.png", "w", force_zip64=True) as stream:
            stream.write(picture(1))
        archive.writestr("folder/", b"")
        archive.writestr("packed.png", picture(2), zipfile.ZIP_BZIP2)
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "streamed.png")
        info = zipfile.ZipInfo("late.png")
        info.extra = struct.pack("<HH4s", 0xCAFE, 4, b"more")
        info.comment = b"of the member"
        archive.writestr(info, picture(3))
    pictures = open_pictures([tmp_path / "a.zip"])
    assert list(pictures.keys) == ["streamed.png", "packed.png", "late.png"]
    assert pictures.read(0) == picture(1) and pictures.read(2) == picture(3)
    assert [key for key, _ in pictures.problems] == ["link.png"]
    with pytest.raises(ImageError, match="method 12"):
        pictures.read(1)


@pytest.mark.parametrize("limit", ["ZIP_FILECOUNT_LIMIT", "ZIP64_LIMIT"])
def test_a_zip_that_is_too_large_for_32_bits(limit: str, picture, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zipfile, limit, 3)  # writes a zip of four members, or of four bytes, as one of a great many
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", picture(number))
    assert b"PK\x06\x06" in (tmp_path / "many.zip").read_bytes()
    pictures = open_pictures([tmp_path / "many.zip"])
    assert [pictures.read(i) for i in range(5)] == [picture(number) for number in range(5)]


def test_a_million_members_fit_every_worker() -> None:
    count = 20_000
    tracemalloc.start()
    table = HeaderTable(0)
    for number in range(count):
        for suffix in (".jpg", ".txt"):
            table.add(f"{number:09}{suffix}", offset=number, stored=9, size=9, checksum=0, method=255)
    index = table.build()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index.names) == count and (index.captions >= 0).all()
    assert peak_bytes < 300 * count  # 300 MB for a million pictures and their captions
    assert len(pickle.dumps(index)) < 120 * count


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_as_programs_write_them(form: int, picture, tmp_path: Path) -> None:
    long = "/".join(["name" * 12] * (2 if form == tarfile.USTAR_FORMAT else 8)) + ".png"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        archive.addfile(_info("./folder", type=tarfile.DIRTYPE))
        for name, data in ((long, picture(1)), ("./x.txt", b"later its picture"), ("./x.png", picture(2))):
            archive.addfile(_info(name, size=len(data)), io.BytesIO(data))
        archive.addfile(_info("link.png", type=tarfile.SYMTYPE, linkname="x.png"))
    pictures = open_pictures([tmp_path / "a.tar"])
    assert list(pictures.keys) == [long, "x.png"] and pictures.captions(1) == ("later its picture",)
    assert [pictures.read(i) for i in range(2)] == [picture(1), picture(2)]
    assert [key for key, _ in pictures.problems] == ["link.png"]


def test_a_damaged_tar_gives_what_stands_before_the_damage_and_says_so(write, picture, tmp_path: Path, caplog) -> None:
    files = {f"{number}.png": picture(number) for number in range(4)}
    path = write("tar", tmp_path, files)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    cases = {
        "header.tar": whole[: third.offset] + b"x" * 512 + whole[third.offset + 512 :],
        "cut.tar": whole[: third.offset_data + 10],
        "cut-header.tar": whole[: third.offset + 100],
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with caplog.at_level(logging.WARNING):
            pictures = open_pictures([tmp_path / name])
        assert len(pictures) == (3 if name == "cut.tar" else 2), name
        assert "damaged or cut off" in pictures.problems[0][1] and name in pictures.problems[0][0], name
        assert name in caplog.text
        assert pictures.read(1) == files["1.png"]
        if name == "cut.tar":
            with pytest.raises(ImageError, match="cut off"):
                pictures.read(2)
    assert open_pictures([path]).problems == ()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_index_of_an_archive_is_kept_and_made_anew_when_the_archive_changes(
    kind, write, picture, tmp_path: Path, monkeypatch
) -> None:
    path = write(kind, tmp_path, {"a.png": picture(1), "a.txt": b"one", "b.png": picture(2)})
    store = tmp_path / "index"
    fresh = open_pictures([path], index_folder=store)

    def refuse(*_: object) -> None:
        raise AssertionError("the headers were read again")

    with monkeypatch.context() as patch:
        patch.setattr("asymcir_training.pictures.archives.scan_zip", refuse)
        patch.setattr("asymcir_training.pictures.archives.scan_tar", refuse)
        again = open_pictures([path], index_folder=store)
    assert list(again.keys) == list(fresh.keys) and again.digest == fresh.digest
    assert again.captions(0) == ("one",) and again.read(1) == picture(2)
    for kept in store.iterdir():
        kept.write_bytes(b"damaged")
    assert list(open_pictures([path], index_folder=store).keys) == ["a.png", "b.png"]
    path = write(kind, tmp_path, {"c.png": picture(3)})
    assert list(open_pictures([path], index_folder=store).keys) == ["c.png"]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_pictures_are_read_in_other_processes(method: str, write, picture, tmp_path: Path) -> None:
    files = {"a.png": picture(0), "b.png": picture(1), "b.txt": b"two"}
    (tmp_path / "list.jsonl").write_text('{"image": "pictures/a.png"}\n')
    pictures = open_pictures([*(write(kind, tmp_path, files) for kind in KINDS), tmp_path / "list.jsonl"])
    expected = [pictures.read(i) for i in range(len(pictures))]  # opens the archives here first
    numbers = range(len(pictures))
    assert list(run_jobs(pictures.read, numbers, workers=1, start_method=method)) == expected
    copied = pickle.loads(pickle.dumps(pictures))
    assert [copied.read(i) for i in range(7)] == expected and copied.digest == pictures.digest


def test_many_archives_use_few_file_handles(write, picture, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("asymcir_training.pictures.archives._OPEN_FILES", 3)
    paths = []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        paths.append(write("tar", tmp_path / str(number), {"x.png": picture(number)}))
    pictures = open_pictures(paths)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [pictures.read(i) for i in range(8)] == [picture(number) for number in range(8)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


def test_members_above_the_limit_are_not_read(write, picture, tmp_path: Path, monkeypatch) -> None:
    paths = [write(kind, tmp_path, {"a.png": picture()}) for kind in KINDS]
    monkeypatch.setattr("asymcir_training.pictures.archives.MAX_FILE_BYTES", 10)
    monkeypatch.setattr("asymcir_training.pictures.origins.MAX_FILE_BYTES", 10)
    pictures = open_pictures(paths)
    for number in range(3):
        with pytest.raises(ImageError, match="above"):
            pictures.read(number)


def test_an_index_agrees_with_the_standard_library(write, picture, tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number) for number in range(20)}
    reader = ArchiveFiles()
    for kind in ("zip", "tar"):
        path = write(kind, tmp_path, files)
        index = read_index(path)
        found = {
            name: reader.read(path, index.members[index.pictures[row]], name) for row, name in enumerate(index.names)
        }
        assert found == files and index.sizes().tolist() == [len(data) for data in files.values()]


def test_arrays_are_pictures_too() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8) for count in (3, 2)]
    pictures = ArrayPictures(arrays)
    assert isinstance(pictures, PictureSet) and not isinstance(arrays, PictureSet)
    assert list(pictures.keys) == ["0:0", "0:1", "0:2", "1:0", "1:1"] and pictures.keys[-2:] == ["1:0", "1:1"]
    assert (pictures.decode(4, SPEC) == arrays[1][1]).all() and pictures.captions(0) == () and pictures.record(0) == {}
    assert (decode_image(pictures.read(3)) == arrays[1][0]).all()
    assert pictures.digest != ArrayPictures(arrays[:1]).digest
    with pytest.raises(DataError, match="side 24"):
        ArrayPictures([np.zeros((1, 8, 8, 3), np.uint8)]).decode(0, SPEC)
    for wrong in ([], [np.zeros((1, 8, 8), np.uint8)], [np.zeros((1, 8, 8, 3), np.float32)]):
        with pytest.raises(DataError, match="expected"):
            ArrayPictures(wrong)
