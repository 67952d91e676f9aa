"""The teacher cache with pictures of one name, pictures that cannot be read, and a store that is read-only."""

import errno
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asymcir_common import ImageError
from asymcir_common.places import open_places
from asymcir_training import Foundation, load_foundation
from asymcir_training.engine.execution import Execution
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import Processes
from asymcir_training.errors import CacheError
from asymcir_training.pictures.sets import Pictures, open_pictures
from asymcir_training.stages.preparation import open_teacher_cache
from asymcir_training.teacher import cache as cache_module
from asymcir_training.teacher.cache import build_teacher_cache
from tiny_foundations import write_clip
from two_processes import run_in_two_processes


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{clip_folder}")


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("it was made again")


@pytest.mark.parametrize("size", [(40, 32), (24, 20)], ids=["of one size", "of two sizes"])
def test_members_of_one_name_have_rows_of_their_own(
    size: tuple[int, int], clip: Foundation, write, picture, tmp_path: Path, monkeypatch
) -> None:
    contents = [picture(1, form="BMP"), picture(2, size=size, form="BMP")]
    assert (len(contents[0]) == len(contents[1])) == (size == (40, 32))
    path = write("tar", tmp_path / "tar", {"a.bmp": contents[0]})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a.bmp")
        info.size = len(contents[1])
        archive.addfile(info, io.BytesIO(contents[1]))
    apart = open_pictures([write("folder", tmp_path, {"1.bmp": contents[0], "2.bmp": contents[1]})])
    expected = build_teacher_cache(tmp_path / "apart", clip, apart, patches=False)
    found = build_teacher_cache(tmp_path / "cache", clip, open_pictures([path]), patches=False)
    assert found.kept.tolist() == [0, 1] and found.problems == []
    assert (found.identities == expected.identities).all()
    np.testing.assert_allclose(found.embedding, expected.embedding, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(cache_module, "only_one_process", _refuse)
    again = build_teacher_cache(tmp_path / "cache", clip, open_pictures([path]), patches=False)
    assert (again.identities == expected.identities).all()


class _Unreliable(Pictures):
    """Pictures of a folder, one of which cannot be read."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(open_places(folder))
        self._number = number

    def read(self, number: int) -> bytes:
        if number == self._number:
            raise ImageError("cannot read it: Input/output error")
        return super().read(number)


def test_what_one_process_found_is_what_the_others_open(clip: Foundation, write, picture, tmp_path: Path) -> None:
    folder = write("folder", tmp_path, {f"{number}.png": picture(number) for number in range(4)})
    main = build_teacher_cache(tmp_path / "cache", clip, _Unreliable(folder, 1), patches=False)
    assert main.kept.tolist() == [0, 2, 3] and main.problems == [("1.png", "cannot read it: Input/output error")]
    reads = open_pictures([folder])
    for root in (tmp_path / "cache", tmp_path / "cache of another machine"):
        other = build_teacher_cache(root, clip, reads, patches=False, usable=main.usable)
        assert other.kept.tolist() == [0, 2, 3] and other.problems == main.problems
        assert (np.asarray(other.embedding) == np.asarray(main.embedding)).all()
        assert (other.identities == main.identities).all()
    assert build_teacher_cache(tmp_path / "cache", clip, reads, patches=False).kept.tolist() == [0, 1, 2, 3]
    with pytest.raises(CacheError, match=r"1 pictures that the main process .*2\.png \(cannot read it"):
        build_teacher_cache(tmp_path / "x", clip, _Unreliable(folder, 2), patches=False, usable=main.usable)


def open_here(processes: Processes, folder: Path) -> list[int]:
    """Open the cache in this process, of which the main one cannot read a picture."""
    execution = Execution(processes=processes, precision=Precision("fp32", processes.device))
    pictures = _Unreliable(folder / "pictures", 1 if processes.is_main else -1)
    foundation = load_foundation(f"local-dir:{folder / 'clip'}")
    return open_teacher_cache(folder / "cache", foundation, pictures, execution, patches=False).kept.tolist()


def test_the_main_process_decides_which_pictures_are_used(write, picture, tmp_path: Path) -> None:
    write("folder", tmp_path, {f"{number}.png": picture(number) for number in range(4)})
    write_clip(tmp_path / "clip")
    assert run_in_two_processes(__file__, "open_here", tmp_path) == [[0, 2, 3]] * 2


def _make_read_only(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Let nothing below a folder be written, as on a read-only mount; root may write whatever its mode says."""
    open_file, access = Path.open, os.access

    def refuse(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if path.is_relative_to(root) and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open_file(path, mode, *rest, **options)

    def refuse_folder(path: Path, *_: Any, **__: Any) -> None:
        if not path.is_dir():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    patch.setattr(Path, "open", refuse)
    patch.setattr(Path, "mkdir", refuse_folder)
    patch.setattr(
        os, "access", lambda path, mode: not (mode & os.W_OK and str(path).startswith(str(root))) and access(path, mode)
    )


def test_a_store_that_is_read_only_opens_where_nothing_is_new(
    clip: Foundation, write, picture, tmp_path: Path, monkeypatch
) -> None:
    files = {"0.png": picture(0), "1.png": b"no picture", "2.png": picture(2)}
    folder, root = write("folder", tmp_path, files), tmp_path / "cache"
    first = build_teacher_cache(root, clip, open_pictures([folder]), patches=False)
    some = write("folder", tmp_path / "some", {"a.png": picture(0), "b.png": b"no picture"})
    build_teacher_cache(root, clip, open_pictures([some]), patches=False)
    for path in first.folder.glob("sets/*/*"):
        if "b.png" in path.read_text():
            path.unlink()
            path.parent.rmdir()
    _make_read_only(monkeypatch, root)
    again = build_teacher_cache(root, clip, open_pictures([folder]), patches=False)
    assert again.kept.tolist() == [0, 2] and again.problems == first.problems
    # Without its own list of bad pictures, which cannot be written.
    assert build_teacher_cache(root, clip, open_pictures([some]), patches=False).problems[0][0] == "b.png"
    # Refused by another version of Pillow, and it cannot be written that this one refuses it too.
    monkeypatch.setattr(cache_module, "_DECODER", "another")
    assert build_teacher_cache(root, clip, open_pictures([folder]), patches=False).problems == first.problems
    unreadable = _Unreliable(folder, 0)
    unreadable.place = lambda number: (
        (f"elsewhere/{number}", -1, 0) if number == 0 else Pictures.place(unreadable, number)
    )
    with pytest.raises(CacheError, match=rf"{first.folder} lacks 1 pictures, such as 0\.png, and cannot be written"):
        build_teacher_cache(root, clip, unreadable, patches=False)


def test_another_version_of_the_decoder_tries_again(
    clip: Foundation, write, picture, tmp_path: Path, monkeypatch
) -> None:
    folder = write("folder", tmp_path, {"0.png": picture(0), "1.png": picture(1), "2.png": b"no picture"})
    decode = cache_module.decode_image

    def refuse(content: bytes, *, name: str) -> np.ndarray:
        if name == "1.png":
            raise ImageError("cannot decode 1.png: not a picture format\nthat can be read")
        return decode(content, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_DECODER", "Pillow without that format")
        patch.setattr(cache_module, "decode_image", refuse)
        before = build_teacher_cache(tmp_path / "cache", clip, open_pictures([folder]), patches=False)
        assert [key for key, _ in before.problems] == ["1.png", "2.png"]
        assert before.problems[0][1] == "cannot decode 1.png: not a picture format\nthat can be read"
    after = build_teacher_cache(tmp_path / "cache", clip, open_pictures([folder]), patches=False)
    assert after.folder == before.folder and after.kept.tolist() == [0, 1]
    assert after.problems == before.problems[1:]
    monkeypatch.setattr(cache_module, "only_one_process", _refuse)  # the new decoder's word is kept
    assert build_teacher_cache(tmp_path / "cache", clip, open_pictures([folder]), patches=False).kept.tolist() == [0, 1]


def test_a_file_that_changes_while_it_is_read_says_so(
    clip: Foundation, write, picture, tmp_path: Path, monkeypatch
) -> None:
    folder = write("folder", tmp_path, {"0.png": picture(0), "1.png": picture(1)})
    read = Pictures.read

    def change(self: Pictures, number: int) -> bytes:
        content = read(self, number)
        if number == 1:
            os.utime(folder / "1.png", ns=(1, 1))
        return content

    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "read", change)
        found = build_teacher_cache(tmp_path / "cache", clip, open_pictures([folder]), patches=False)
    assert found.problems == [("1.png", "it changed while it was read: start again")]


@pytest.mark.parametrize(
    ("embedding", "patches", "message"),
    [
        (np.inf, 1.0, r"features \(embedding\) that are not finite .* x\.png: take precision bf16 or fp32"),
        (1.0, np.nan, r"features \(patches\) that are not finite .* x\.png: take precision bf16 or fp32"),
        (1e5, 7e4, r"features \(patches\) up to 70,000 .* not finite in float16, .*: train what needs no patches"),
    ],
)
def test_what_is_not_finite_is_named(embedding: float, patches: float, message: str) -> None:
    outputs = torch.full((1, 3), embedding), torch.full((1, 2, 3), patches)
    with pytest.raises(CacheError, match=message):
        cache_module._write_outputs(None, [b""], outputs, "x.png")
