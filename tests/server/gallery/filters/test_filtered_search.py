"""Searches with filters, and hits by item, against brute force with a mask."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asymcir_common.manifest import GALLERY, write_manifest
from asymcir_protos import parse_filter
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from asymcir_server.gallery.indexes import INDEX_NAME, IndexConfig, build_index
from asymcir_server.gallery.metadata import MetadataWriter
from asymcir_server.gallery.vectors_file import VectorWriter
from numpy.typing import NDArray

WIDTH = 16
SIZE = 4000
Writer = Callable[..., tuple[Gallery, NDArray[np.float32]]]


def unit_rows(count: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def open_gallery(tmp_path: Path) -> Writer:
    """Write a snapshot of random vectors with given metadata and items, and open it."""

    def write(metadata: list[dict[str, Any]], items: list[str | None] | None = None, kind: str = "exact") -> Any:
        vectors = unit_rows(len(metadata), 1)
        writer = VectorWriter(tmp_path / "vectors.npy", WIDTH)
        writer.append(vectors)
        writer.close()
        table = MetadataWriter(tmp_path / "metadata.sqlite")
        for row, record in enumerate(metadata):
            table.add(row, f"p{row}", record, item=None if items is None else items[row])
        properties = {
            "version": "000001", "target": "union", "target_space": "s", "size": len(metadata), "items": table.finish(),
            "embedding_width": WIDTH,
            **build_index(tmp_path / "vectors.npy", tmp_path / INDEX_NAME, IndexConfig(kind=kind)),
        }  # fmt: skip
        table.close()
        write_manifest(tmp_path, format=GALLERY, properties=properties)
        return Gallery(tmp_path, tmp_path), vectors

    return write


def expect(vectors: NDArray[np.float32], query: NDArray[np.float32], allowed: list[int], top_k: int) -> list[str]:
    scores = vectors[allowed] @ query
    return [f"p{allowed[place]}" for place in np.argsort(-scores, kind="stable")[:top_k]]


def test_every_selectivity_equals_brute_force_with_a_mask(open_gallery: Writer) -> None:
    gallery, vectors = open_gallery([{"n": n} for n in range(SIZE)])
    query = unit_rows(3, 2)
    for count in (0, 1, 4, 40, SIZE // 10, SIZE // 2, SIZE - 1, SIZE):
        where = parse_filter(f"n >= {SIZE - count}")
        allowed = list(range(SIZE - count, SIZE))
        found = gallery.search(query, 10, where=where)
        assert found.ids == [expect(vectors, one, allowed, 10) for one in query]
        assert found.scores.shape == (3, min(10, count))
        excluded = [found.ids[0][0], "p0", "unknown"] if count else ["p0"]
        rest = [row for row in allowed if f"p{row}" not in excluded]
        found = gallery.search(query, 10, excluded, where=where)
        assert found.ids == [expect(vectors, one, rest, 10) for one in query]
    gallery.close()


@pytest.mark.parametrize("kind", ["sq8", "hnsw", "ivf-sq8", "ivf-rabitq"])
def test_kinds_of_codes_answer_what_a_filter_allows_with_their_recall(open_gallery: Writer, kind: str) -> None:
    items = [f"item{n // 2}" for n in range(SIZE)]
    gallery, vectors = open_gallery([{"n": n} for n in range(SIZE)], items, kind)
    assert gallery.index_kind == kind
    query = unit_rows(40, 2)
    for count in (40, SIZE // 10, SIZE // 2, SIZE):
        allowed = list(range(SIZE - count, SIZE))
        for every_picture in (True, False):
            found = gallery.search(query, 10, where=parse_filter(f"n >= {SIZE - count}"), every_picture=every_picture)
            hits = 0
            for one, ids in zip(query, found.ids, strict=True):
                assert len(set(ids)) == 10 and all(int(identity[1:]) >= SIZE - count for identity in ids)
                shown = {items[int(identity[1:])] for identity in ids}
                assert every_picture or len(shown) == 10
                best = (
                    expect(vectors, one, allowed, 10)
                    if every_picture
                    else expect_items(vectors, one, items, allowed, 10)
                )
                hits += len(set(ids) & set(best))
            assert hits / 400 >= 0.9, (count, every_picture)
    gallery.close()


def expect_items(
    vectors: NDArray[np.float32], query: NDArray[np.float32], items: list[str | None], allowed: list[int], top_k: int
) -> list[str]:
    seen: dict[Any, str] = {}
    for identity in expect(vectors, query, allowed, len(vectors)):
        seen.setdefault(items[int(identity[1:])] or identity, identity)
    return list(seen.values())[:top_k]


@pytest.mark.parametrize("pictures_of_the_first", [1, 300, SIZE - 30])
def test_items_are_answered_once_by_their_best_picture(open_gallery: Writer, pictures_of_the_first: int) -> None:
    generator = np.random.default_rng(4)
    items: list[str | None] = ["big"] * pictures_of_the_first
    items += [f"item{generator.integers(40)}" for _ in range(SIZE - pictures_of_the_first - 10)] + [None] * 10
    gallery, vectors = open_gallery([{"n": n % 7} for n in range(SIZE)], items)
    query = unit_rows(4, 5)
    everything = list(range(SIZE))
    for top_k in (1, 10, 30, 1000):
        found = gallery.search(query, top_k)
        assert found.ids == [expect_items(vectors, one, items, everything, top_k) for one in query]
        assert found.items == [[items[int(identity[1:])] or "" for identity in ids] for ids in found.ids]
        some = [row for row in everything if row % 7 == 3 and items[row] != "big" and row != SIZE - 1]
        found = gallery.search(query, top_k, ["big", f"p{SIZE - 1}"], where=parse_filter("n = 3"))
        assert found.ids == [expect_items(vectors, one, items, some, top_k) for one in query]
    assert gallery.search(query, 10, every_picture=True).ids == [expect(vectors, one, everything, 10) for one in query]
    gallery.close()


def test_a_list_names_items(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> None:
    paths = sorted(pictures.rglob("*.png"))
    lines = [{"path": str(path), "id": str(n), "item": n // 2, "shop": {"a": 1}} for n, path in enumerate(paths[:8])]
    lines[7]["item"] = [1]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    report = build_gallery(tmp_path / "list.jsonl", bundle, tmp_path / "g")
    assert (report.size, report.quarantined) == (7, 1)
    assert "expected a text or a whole number as item, got [1]; --item-column" in (
        report.snapshot / "quarantine.jsonl"
    ).read_text(encoding="utf-8")
    gallery = Gallery.open(tmp_path / "g")
    assert gallery.items == 4
    found = gallery.search(np.ones((1, gallery.embedding_width), np.float32), 10)
    assert sorted(found.items[0]) == ["0", "1", "2", "3"]
    assert gallery.metadata(["2"]) == [{"item": 1, "shop": {"a": 1}}]
    gallery.close()
    build_gallery(tmp_path / "list.jsonl", bundle, tmp_path / "g", config=BuildConfig(item_column=""))
    gallery = Gallery.open(tmp_path / "g")
    assert (gallery.size, gallery.items) == (8, 0)
    gallery.close()
