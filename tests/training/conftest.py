import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from asymcir_training import Foundation, load_foundation
from PIL import Image
from tiny_foundations import write_bert, write_bidirectional, write_clip

Files = Mapping[str, bytes]
Make = Callable[..., bytes]


@pytest.fixture(scope="session")
def picture() -> Make:
    """Makes a picture file of random pixels, another for each number."""

    def make(number: int = 0, *, size: tuple[int, int] = (40, 32), form: str = "PNG") -> bytes:
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(stream, format=form)
        return stream.getvalue()

    return make


@pytest.fixture(scope="session")
def corrupt(picture: Make) -> dict[str, bytes]:
    """Files that bear a picture's suffix and are none, by what is wrong with them."""
    bomb = io.BytesIO()
    Image.new("1", (16000, 16000)).save(bomb, format="PNG")  # 256 megapixels in 32 KB
    return {
        "truncated.jpg": picture(1, size=(200, 200), form="JPEG")[:-600],
        "text.jpg": b"<html>not found</html>",
        "empty.png": b"",
        "bomb.png": bomb.getvalue(),
        "half.png": picture(2, size=(200, 200))[:300],
    }


def write_files(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def write() -> Callable[[str, Path, Files], Path]:
    """Writes the same files as a folder, a zip or a tar."""

    def write_as(kind: str, place: Path, files: Files) -> Path:
        if kind == "folder":
            return write_files(place / "pictures", files)
        return {"zip": write_zip, "tar": write_tar}[kind](place / f"pictures.{kind}", files)

    return write_as


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("foundation") / "clip")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("foundation") / "bert")


@pytest.fixture(scope="session", params=["clip", "bert", "reads padding"])
def foundation(
    request: pytest.FixtureRequest,
    clip_folder: Path,
    bert_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Foundation:
    folders = {"clip": clip_folder, "bert": bert_folder}
    if request.param not in folders:
        folders[request.param] = write_bidirectional(tmp_path_factory.mktemp("foundation") / "x")
    return load_foundation(f"local-dir:{folders[request.param]}")
