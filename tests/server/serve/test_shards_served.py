"""A gallery in shards behind a server: the answers are those of the whole gallery, and changes of a shard are found."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asymcir_edge import GalleryAdmin, RequestRefusedError, RetrievalClient, ServerError
from asymcir_server import Gallery, RetrievalServer, ServerBundle, ServerConfig, build_gallery
from asymcir_server.gallery import GalleryHolder, ShardedGallery
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel


@pytest.fixture
def shards(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> list[Path]:
    """The pictures of the whole gallery, each of the two folders in a shard."""
    folders = []
    for side in ("left", "right"):
        shutil.copytree(pictures / side, tmp_path / side / side)
        build_gallery(tmp_path / side, bundle, tmp_path / f"shard-{side}")
        folders.append(tmp_path / f"shard-{side}")
    return folders


def test_a_server_answers_from_shards_as_from_the_whole(
    shards: list[Path], gallery: Gallery, bundle: ServerBundle, tokens: NDArray[np.float32], model: TinyModel
) -> None:
    holder = GalleryHolder(ShardedGallery.open(shards, bundle.target_spaces))
    with (
        RetrievalServer(bundle, {"whole": gallery, "parts": holder}, ServerConfig(admin=True)) as server,
        RetrievalClient(server.address) as client,
    ):
        answers = [
            [(hit.id, hit.score) for hit in client.search(tokens, model.word_space, gallery=name, top_k=15).hits]
            for name in ("whole", "parts")
        ]
        whole, parts = client.describe().galleries
        assert (parts.size, parts.target_space, parts.version) == (whole.size, whole.target_space, "000001,000001")
        with pytest.raises(ServerError, match="in 2 shards: change the shard that a picture belongs to"):
            GalleryAdmin(client, gallery="parts").remove(["left/01.png"])
        with pytest.raises(RequestRefusedError, match="no picture has 'price'"):
            client.search(tokens, model.word_space, gallery="parts", where="price < 3")
    holder.close()
    assert [name for name, _ in answers[0]] == [name for name, _ in answers[1]]
    assert [score for _, score in answers[0]] == pytest.approx([score for _, score in answers[1]], abs=1e-5)


def test_the_command_serves_shards_and_finds_what_is_removed_from_one(
    shards: list[Path],
    bundle_folder: Path,
    tmp_path: Path,
    tokens: NDArray[np.float32],
    model: TinyModel,
    start_asymcir: Callable[..., subprocess.Popen[str]],
    run_asymcir: Callable[..., subprocess.CompletedProcess[str]],
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    port_file = tmp_path / "port"
    galleries = ("--gallery", f"parts={shards[0]}", "--gallery", f"parts+={shards[1]}")
    start_asymcir("serve", "--server-bundle", bundle_folder, *galleries, "--port", 0, "--port-file", port_file)
    wait_until(port_file.exists)
    with RetrievalClient(f"127.0.0.1:{port_file.read_text().strip()}") as client:
        best = client.search(tokens, model.word_space, top_k=1).hits[0].id
        shard = shards[("left", "right").index(best.split("/")[0])]
        done = run_asymcir("gallery", "remove", "--gallery", shard, "--ids", best)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: client.search(tokens, model.word_space, top_k=1).hits[0].id != best)
