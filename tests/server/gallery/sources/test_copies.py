"""A picture that a gallery holds more than once is answered once."""

from pathlib import Path

import numpy as np
import pytest
from asymcir_edge import RetrievalClient
from asymcir_edge.cli import main
from asymcir_server import BuildConfig, Gallery, RetrievalServer, ServerBundle, add_pictures, build_gallery
from asymcir_server.gallery import ShardedGallery
from asymcir_server.gallery.sources.copies import Distinct, Fingerprint, search_distinct
from numpy.typing import NDArray
from PIL import Image
from tiny_server_bundle import TinyModel


def smooth(seed: int) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures; three copies of the file of each of the first two, and each of the next two at half the size."""
    folder = tmp_path_factory.mktemp("copied")
    for seed in range(12):
        smooth(seed).save(folder / f"{seed:02}.png")
    for seed in range(2):
        for copy in "abc":
            (folder / f"{seed:02}{copy}.png").write_bytes((folder / f"{seed:02}.png").read_bytes())
    for seed in (2, 3):
        smooth(seed).resize((32, 32), Image.Resampling.LANCZOS).save(folder / f"{seed:02}small.png")
    return folder


def name(identity: str, *, near: bool) -> str:
    """What all copies of a picture share."""
    return identity[:2] if near or not identity.endswith("small.png") else identity


def expected(gallery: Gallery, query: NDArray[np.float32], top_k: int, *, near: bool) -> list[str]:
    """The ranking of everything, less the later ones of each group."""
    ids = gallery.search(query, 100).ids[0]
    return list(dict.fromkeys(name(identity, near=near) for identity in ids))[:top_k]


@pytest.mark.parametrize("near", [False, True])
def test_copies_are_left_out(copied: Path, near: bool, tmp_path: Path, bundle: ServerBundle) -> None:
    build_gallery(copied, bundle, tmp_path / "gallery", config=BuildConfig(near_duplicates=near))
    gallery = Gallery.open(tmp_path / "gallery")
    queries = np.random.default_rng(5).standard_normal((6, gallery.embedding_width)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for top_k in (1, 5, 30):
        together = gallery.search(queries, top_k, collapse_duplicates=True)
        for number in range(len(queries)):
            one = queries[number : number + 1]
            wanted = expected(gallery, one, top_k, near=near)
            assert [name(found, near=near) for found in together.ids[number]] == wanted
            alone = gallery.search(one, top_k, collapse_duplicates=True).ids[0]
            assert [name(found, near=near) for found in alone] == wanted
    without = gallery.search(queries[:1], 30, ["00.png"], collapse_duplicates=True).ids[0]
    assert "00.png" not in without and sum(one.startswith("00") for one in without) == 1
    gallery.close()


def test_added_pictures_and_shards(copied: Path, tmp_path: Path, bundle: ServerBundle) -> None:
    build_gallery(copied, bundle, tmp_path / "one")
    (tmp_path / "more").mkdir()
    for name in ("00", "05"):
        (tmp_path / "more" / f"{name}again.png").write_bytes((copied / f"{name}.png").read_bytes())
    smooth(50).save(tmp_path / "more" / "50.png")
    build_gallery(tmp_path / "more", bundle, tmp_path / "two")
    sharded = ShardedGallery.open([tmp_path / "one", tmp_path / "two"])
    query = np.eye(sharded.embedding_width, dtype=np.float32)[:1]
    found = sharded.search(query, 100, collapse_duplicates=True).ids[0]
    assert sorted(one[:2] for one in found if "small" not in one) == [f"{n:02}" for n in [*range(12), 50]]
    assert len(sharded.search(query, 100).ids[0]) == 12 + 6 + 2 + 3
    sharded.close()
    add_pictures(tmp_path / "one", tmp_path / "more", bundle)
    gallery = Gallery.open(tmp_path / "one")
    assert sorted(gallery.search(query, 100, collapse_duplicates=True).ids[0])[-1] == "50.png"
    assert len(gallery.search(query, 100, collapse_duplicates=True).ids[0]) == len(found)
    gallery.close()


def test_over_the_wire_and_by_the_command(
    copied: Path, tmp_path: Path, bundle: ServerBundle, tokens: NDArray[np.float32], model: TinyModel,
) -> None:  # fmt: skip
    build_gallery(copied, bundle, tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery", bundle.target_spaces)
    with RetrievalServer(bundle, {"g": gallery}) as server, RetrievalClient(server.address) as client:
        everything = client.search(tokens, model.word_space, top_k=50)
        once = client.search(tokens, model.word_space, top_k=50, collapse_duplicates=True)
        assert (len(everything.hits), len(once.hits)) == (20, 14)
    gallery.close()


def test_a_search_ends_where_all_are_copies() -> None:
    depths = list[int]()

    def find(depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        depths.append(depth)
        return np.ones(depth, np.float32), np.arange(depth)

    scores, rows = search_distinct(find, lambda rows: [Fingerprint(digest=b"same") for _ in rows], 4)
    assert (scores.tolist(), rows.tolist()) == ([1.0], [0])
    assert depths == [4, 8, 16, 32, 64, 128, 256]


def test_pictures_of_another_colour_are_no_copies() -> None:
    red, blue = np.array([1, 0], np.float32), np.array([0.8, 0.6], np.float32)
    distinct = Distinct()
    assert distinct.take(Fingerprint(picture_hash=0b1111, vector=red))
    assert distinct.take(Fingerprint(picture_hash=0b1111, vector=blue))
    assert not distinct.take(Fingerprint(picture_hash=0b1110, vector=red))
    assert distinct.take(Fingerprint(picture_hash=0b11110000, vector=red))
    assert distinct.take(Fingerprint()) and distinct.take(Fingerprint())


def test_a_dry_run(copied: Path, tmp_path: Path, bundle_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    for name in ("00.png", "notes.txt", ".hidden.png"):
        (tmp_path / "a" / name).write_bytes(b"not looked at")
    words = ["gallery", "build", str(tmp_path / "a"), str(copied), "--server-bundle", str(bundle_folder)]
    words += ["--gallery", str(tmp_path / "gallery"), "--exclude", "*small*", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("19 pictures would be read, 0 put aside; nothing was written\n")
    assert "1 .txt (such as notes.txt)" in said and "2 --exclude *small*" in said
    assert not (tmp_path / "gallery").exists()
    assert main([*words, "--json"]) == 0
    assert '"pictures": 19' in capsys.readouterr().out
    (tmp_path / "list.jsonl").write_text('{"path": "a/00.png"}\n{"path": "a/00.png", "id": "a/00.png"}\nnothing\n')
    words[2:4] = [str(tmp_path / "list.jsonl")]
    assert main(words) == 0
    assert "would be read, 2 put aside" in capsys.readouterr().out


def test_a_dry_run_tells_of_a_gallery_that_would_shrink(
    copied: Path, tmp_path: Path, bundle: ServerBundle, bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_gallery(copied, bundle, tmp_path / "gallery")
    words = ["gallery", "build", str(copied), "--server-bundle", str(bundle_folder), "--gallery"]
    words += [str(tmp_path / "gallery"), "--include", "0[01]*", "--dry-run"]
    assert main(words) == 1
    assert "pass --allow-shrink" in capsys.readouterr().err
    assert main([*words, "--allow-shrink"]) == 0
