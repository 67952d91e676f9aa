"""Zips and tars, whole, damaged, as other programs write them, and of a million members."""

import contextlib
import io
import logging
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from asymcir_common import ImageError, PlaceError
from asymcir_common.places import open_places
from asymcir_training import open_pictures


def _info(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_damaged_and_encrypted_members_of_a_zip_fail_alone(face, write, picture, tmp_path: Path) -> None:
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
    found = face([path])
    assert found.read(0) == files["0.png"] and found.read(3) == files["3.png"]
    for number, reason in ((1, "unpack"), (2, "damaged header"), (4, "encrypted")):
        with pytest.raises(ImageError, match=reason):
            found.read(number)


def test_zips_as_other_programs_write_them(face, picture, tmp_path: Path) -> None:
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
    found = face([tmp_path / "a.zip"])
    assert found.ids == ["late.png", "packed.png", "streamed.png"]
    assert found.read(2) == picture(1) and found.read(0) == picture(3)
    assert list(found.rejected) == ["link.png"]
    with pytest.raises(ImageError, match="method 12"):
        found.read(1)


@pytest.mark.parametrize("limit", ["ZIP_FILECOUNT_LIMIT", "ZIP64_LIMIT"])
def test_a_zip_that_is_too_large_for_32_bits(limit: str, face, picture, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zipfile, limit, 3)  # writes a zip of four members, or of four bytes, as one of a great many
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", picture(number))
    assert b"PK\x06\x06" in (tmp_path / "many.zip").read_bytes()
    found = face([tmp_path / "many.zip"])
    assert [found.read(i) for i in range(5)] == [picture(number) for number in range(5)]


@pytest.mark.parametrize(("kind", "peak"), [("zip", 1500), ("tar", 500)])
def test_a_million_members_fit_every_worker(kind: str, peak: int, write, tmp_path: Path) -> None:
    count = 20_000
    path = write(
        kind, tmp_path, {f"{number:09}{suffix}": b"" for number in range(count) for suffix in (".jpg", ".txt")}
    )
    tracemalloc.start()
    places = open_places(path)
    kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(places) == count and places.places[0].beside(count - 1) == (b"", None)
    assert kept_bytes < 200 * count  # 200 MB for a million pictures and their captions
    assert peak_bytes < peak * count
    assert len(pickle.dumps(places)) < 120 * count


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_as_programs_write_them(form: int, face, picture, tmp_path: Path) -> None:
    long = "/".join(["name" * 12] * (2 if form == tarfile.USTAR_FORMAT else 8)) + ".png"
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        archive.addfile(_info("./folder", type=tarfile.DIRTYPE))
        for name, data in ((long, picture(1)), ("./x.txt", b"later its picture"), ("./x.png", picture(2))):
            archive.addfile(_info(name, size=len(data)), io.BytesIO(data))
        archive.addfile(_info("link.png", type=tarfile.SYMTYPE, linkname="x.png"))
    found = face([tmp_path / "a.tar"])
    assert found.ids == [long, "x.png"] and open_pictures([tmp_path / "a.tar"]).captions(1) == ("later its picture",)
    assert [found.read(i) for i in range(2)] == [picture(1), picture(2)]
    assert list(found.rejected) == ["link.png"]


def test_a_damaged_tar_gives_what_stands_before_the_damage_and_says_so(face, write, picture, tmp_path: Path) -> None:
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
        found = face([tmp_path / name])
        assert len(found.ids) == (3 if name == "cut.tar" else 2), name
        assert [(key, "damaged or cut off" in reason) for key, reason in found.rejected.items()] == [(name, True)]
        assert found.read(1) == files["1.png"]
        if name == "cut.tar":
            with pytest.raises(ImageError, match="cut off"):
                found.read(2)
    assert face([path]).rejected == {}


def test_training_names_a_damaged_tar_in_its_log(write, picture, tmp_path: Path, caplog) -> None:
    path = write("tar", tmp_path, {"a.png": picture(1), "b.png": picture(2)})
    path.write_bytes(path.read_bytes()[: 2 * tarfile.BLOCKSIZE + len(picture(1)) + 100])
    with caplog.at_level(logging.WARNING):
        pictures = open_pictures([path])
    assert "damaged or cut off" in pictures.problems[0][1] and path.name in caplog.text


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_index_of_an_archive_is_kept_and_made_anew_when_the_archive_changes(
    kind, write, picture, tmp_path: Path, monkeypatch
) -> None:
    path = write(kind, tmp_path, {"a.png": picture(1), "a.txt": b"one", "b.png": picture(2)})
    store = tmp_path / "index"
    fresh = open_pictures([path], index_folder=store)

    def refuse(*_: object) -> None:
        raise AssertionError("the directory was read again")

    with monkeypatch.context() as patch:
        patch.setattr("asymcir_common.places.archive_index.read_directory", refuse)
        again = open_pictures([path], index_folder=store)
    assert list(again.keys) == list(fresh.keys) and again.digest == fresh.digest
    assert again.captions(0) == ("one",) and again.read(1) == picture(2)
    for kept in store.iterdir():
        kept.write_bytes(b"damaged")
    assert list(open_pictures([path], index_folder=store).keys) == ["a.png", "b.png"]
    path = write(kind, tmp_path, {"c.png": picture(3)})
    assert list(open_pictures([path], index_folder=store).keys) == ["c.png"]


def test_many_archives_use_few_file_handles(write, picture, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("asymcir_common.places.file_reading._OPEN_FILES", 3)
    paths = []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        paths.append(write("tar", tmp_path / str(number), {"x.png": picture(number)}))
    pictures = open_pictures(paths)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [pictures.read(i) for i in range(8)] == [picture(number) for number in range(8)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


def test_an_index_agrees_with_the_standard_library(write, picture, tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number) for number in range(20)}
    for kind in ("zip", "tar"):
        places = open_places(write(kind, tmp_path, files))
        found = {name: places.read(number) for number, name in enumerate(places.ids)}
        assert found == files
        assert places.places[0].sizes().tolist() == [len(files[name]) for name in places.ids]


def test_what_stands_before_a_zip_is_passed_over(face, write, picture, tmp_path: Path) -> None:
    path = write("zip", tmp_path, {"a.png": picture()})
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert face([path]).read(0) == picture()


def test_a_damaged_zip_says_whether_it_ends_early(write, picture, tmp_path: Path) -> None:
    whole = write("zip", tmp_path, {"a.png": picture()}).read_bytes()
    for data, reason in ((whole[:-30], "ends early"), (b"x" * 100, "not a zip file"), (b"", "not a zip file")):
        (tmp_path / "x.zip").write_bytes(data)
        with pytest.raises(PlaceError, match=reason):
            open_places(tmp_path / "x.zip")


def test_a_directory_that_is_cut_leaves_no_other_error(write, picture, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("zip", "tar"):
        path = write(kind, tmp_path, {f"{number}.png": picture(number, size=(8, 8)) for number in range(3)})
        whole = path.read_bytes()
        for _ in range(300):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                places = open_places(path)
            except PlaceError:
                continue
            for number in range(len(places)):
                with contextlib.suppress(ImageError):
                    places.read(number)
