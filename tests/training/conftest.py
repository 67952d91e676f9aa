import io
from collections.abc import Callable
from pathlib import Path

import pytest
from asymcir_training import Foundation, load_foundation
from PIL import Image
from tiny_foundations import write_bert, write_bidirectional, write_clip

Make = Callable[..., bytes]


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
