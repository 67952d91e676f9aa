"""The teacher cache with pictures of one name, pictures that cannot be read, and a store that is read-only."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from asymcir_training import Foundation, load_foundation
from asymcir_training.pictures.sets import open_pictures
from asymcir_training.teacher import cache as cache_module
from asymcir_training.teacher.cache import build_teacher_cache


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
