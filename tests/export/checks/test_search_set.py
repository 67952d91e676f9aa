import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from asymcir_export import ExportError, export_server_bundle
from asymcir_export.checks.search_set import TOP_K, Answers, SearchSet, compare_answers
from asymcir_training import Foundation, UnionHead
from PIL import Image


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, causal_foundation: Foundation, union_head: UnionHead, pictures: Path
) -> Path:
    out = tmp_path_factory.mktemp("server") / "bundle"
    export_server_bundle(causal_foundation, union_head, out, pictures=pictures)
    return out


def write_set(folder: Path, *, target: str = "p3") -> Path:
    generator = np.random.default_rng(1)
    (folder / "gallery").mkdir(parents=True)
    (folder / "queries").mkdir()
    rows = []
    for number in range(14):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((40, 40), Image.Resampling.BICUBIC).save(folder / "gallery" / f"p{number}.png")
        rows.append({"path": f"p{number}.png", "id": f"p{number}"})
    (folder / "gallery" / "gallery.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("p0", "p1"):
        Image.open(folder / "gallery" / f"{name}.png").save(folder / "queries" / f"{name}.png")
    triplets = [
        {"reference": "p0", "modifier": "is red", "target": target},
        {"reference": "p1", "modifier": "is blue", "target": "p4"},
        {"reference": "p1", "modifier": "is small", "target": "p5"},
    ]
    (folder / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in triplets))
    return folder


def test_a_search_leaves_the_reference_out_and_answers_a_part_alone(
    server: Path, causal_foundation: Foundation, tmp_path: Path
) -> None:
    found = SearchSet(write_set(tmp_path / "set"), server)
    assert len(found) == 3 and len(found.pictures) == 2
    assert found.word_space == causal_foundation.word_space()
    table = causal_foundation.word_embedding_table().numpy()
    tokens = np.stack([table[10:16], table[30:36]])
    answers = found.search(tokens)
    assert answers.top.shape == (3, TOP_K)
    assert 0 not in answers.top[0] and 1 not in answers.top[1:]
    np.testing.assert_array_equal(
        answers.hits, [target in row for target, row in zip((3, 4, 5), answers.top, strict=True)]
    )
    for name, place in (("queries", "queries.zip"), ("gallery", "gallery/gallery.zip")):
        with zipfile.ZipFile(tmp_path / "set" / place, "w") as archive:
            for path in (tmp_path / "set" / name).glob("*.png"):
                archive.write(path, path.name)
                path.unlink()
    rows = tmp_path / "set" / "gallery" / "gallery.jsonl"
    rows.write_text(rows.read_text().replace('"path": "', '"path": "gallery.zip/'))
    packed = SearchSet(tmp_path / "set", server)
    assert all((a == b).all() for a, b in zip(packed.pictures, found.pictures, strict=True))
    np.testing.assert_array_equal(packed.search(tokens).top, answers.top)
    part = found.search(tokens[1:], [1])
    np.testing.assert_array_equal(part.top, answers.top[1:])
    np.testing.assert_array_equal(part.hits, answers.hits[1:])
    kept = found.restrict(answers, [1])
    np.testing.assert_array_equal(kept.top, part.top)
    np.testing.assert_array_equal(kept.hits, part.hits)


def test_a_set_that_lacks_a_picture_is_refused(server: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="lacks the picture of 'p0' or of 'p99'"):
        SearchSet(write_set(tmp_path / "set", target="p99"), server)
    with pytest.raises(ExportError, match="cannot read the search set"):
        SearchSet(tmp_path, server)


def test_answers_are_compared_query_by_query() -> None:
    top = np.arange(40).reshape(4, 10)
    original = Answers(top=top, hits=np.array([True, True, False, False]))
    other = top.copy()
    other[0, 9] = 99  # one answer of forty is another one
    other[1, [0, 1]] = other[1, [1, 0]]  # the same answers in another order
    found = Answers(top=other, hits=np.array([True, False, False, False]))
    record = compare_answers(original, found)
    assert record["queries"] == 4
    assert (record["recall_at_10_original"], record["recall_at_10"]) == (0.5, 0.25)
    assert record["recall_at_10_change"] == -0.25
    assert record["recall_at_10_change_interval"][0] < -0.25 < record["recall_at_10_change_interval"][1] <= 0.0
    assert record["top_10_agreement"] == pytest.approx(39 / 40)
    assert record["top_1_agreement"] == 0.75
