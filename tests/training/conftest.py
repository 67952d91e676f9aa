from pathlib import Path

import pytest
from asymcir_training import Foundation, load_foundation
from tiny_foundations import write_bert, write_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("foundation") / "clip")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("foundation") / "bert")


@pytest.fixture(scope="session", params=["clip", "bert"])
def foundation(request: pytest.FixtureRequest, clip_folder: Path, bert_folder: Path) -> Foundation:
    folder = clip_folder if request.param == "clip" else bert_folder
    return load_foundation(f"local-dir:{folder}")
