"""Pictures, and places that they lie in; logging as a test found it."""

import io
import logging
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Files = Mapping[str, bytes]
Make = Callable[..., bytes]


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Undo what a command that ran in this process has set: the next test's log messages would be missing."""
    root = logging.getLogger()
    found = [root, *(logging.getLogger(name) for name in root.manager.loggerDict if name.startswith("asymcir"))]
    before, handlers = {logger: logger.level for logger in found}, list(root.handlers)
    yield
    root.handlers[:] = handlers
    for name in root.manager.loggerDict:
        if name.startswith("asymcir"):
            logger = logging.getLogger(name)
            logger.setLevel(before.get(logger, logging.NOTSET))
    root.setLevel(before[root])


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
        place.mkdir(parents=True, exist_ok=True)
        return {"zip": write_zip, "tar": write_tar}[kind](place / f"pictures.{kind}", files)

    return write_as
