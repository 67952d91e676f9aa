from pathlib import Path

import pytest
from asymcir_training import Foundation, load_foundation
from tiny_foundations import write_bert, write_bidirectional, write_clip


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
