"""Galleries in shards answer as one gallery of all their pictures does."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asymcir_common import BundleError
from asymcir_protos import parse_filter
from asymcir_server.commands import parse_galleries
from asymcir_server.errors import ListenError, RequestError, SpaceMismatchError
from asymcir_server.gallery import Follower, GalleryHolder, ShardedGallery, edit_gallery
from vector_galleries import Expected, new_picture, unit_rows, write_gallery

SIZES = (40, 7, 25)
QUERIES = unit_rows(20, 99)

FILTERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "n < 12": lambda record: record["n"] < 12,
    "n = 3": lambda record: record["n"] == 3,
    'only = "here"': lambda record: record.get("only") == "here",
    'only != "here"': lambda record: record.get("only") != "here",
    "not exists only and n >= 2": lambda record: "only" not in record and record["n"] >= 2,
    'item in ("i1", "i4")': lambda record: record.get("item") in ("i1", "i4"),
}


def describe(shard: int, row: int) -> dict[str, Any]:
    """Items lie across the first two shards; a key is of one shard only; numbers are whole but in the last one."""
    record: dict[str, Any] = {"n": row + 0.5 if shard == 2 else row}
    if shard < 2:
        record["item"] = f"i{row % 9}"
    if shard == 1:
        record["only"] = "here"
    return record


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"shard{number}" for number in range(len(SIZES))]


@pytest.fixture
def expected(folders: list[Path]) -> Expected:
    whole, first = Expected(), 0
    for number, (folder, size) in enumerate(zip(folders, SIZES, strict=True)):
        part = write_gallery(folder, [describe(number, row) for row in range(size)], seed=number, first=first)
        whole.vectors.update(part.vectors)
        whole.metadata.update(part.metadata)
        first += size
    return whole


@pytest.fixture
def sharded(folders: list[Path], expected: Expected) -> Iterator[ShardedGallery]:
    with closing(ShardedGallery.open(folders, {"union": "space"})) as gallery:
        yield gallery


def test_it_describes_itself_as_one_gallery(sharded: ShardedGallery) -> None:
    assert (sharded.size, sharded.embedding_width, sharded.target) == (sum(SIZES), 16, "union")
    assert (sharded.index_kind, sharded.index_recall_at_10) == ("exact", 1.0)
    assert sharded.full_version == "000001,000001,000001"
    assert {key: column.type for key, column in sharded.columns.by_key.items()} == {
        "n": "real", "item": "text", "only": "text",
    }  # fmt: skip


@pytest.mark.parametrize("top_k", [1, 5, 30, 200])
@pytest.mark.parametrize("by_item", [False, True])
def test_it_answers_as_one_gallery_of_all_pictures(
    sharded: ShardedGallery, expected: Expected, top_k: int, by_item: bool
) -> None:
    result = sharded.search(QUERIES, top_k, every_picture=not by_item)
    for number, query in enumerate(QUERIES):
        assert result.ids[number] == expected.search(query, top_k, set(expected.vectors), by_item)
        scores = [float(expected.vectors[name] @ query) for name in result.ids[number]]
        assert result.scores[number, : len(scores)] == pytest.approx(scores, abs=1e-5)
        assert result.items[number] == [expected.metadata[name].get("item", "") for name in result.ids[number]]


@pytest.mark.parametrize("text", FILTERS)
@pytest.mark.parametrize("by_item", [False, True])
def test_filters_select_in_every_shard_whatever_keys_it_has(
    sharded: ShardedGallery, expected: Expected, text: str, by_item: bool
) -> None:
    where = parse_filter(text)
    sharded.check_filter(where)
    allowed = {name for name, record in expected.metadata.items() if FILTERS[text](record)}
    assert allowed
    result = sharded.search(QUERIES, 10, where=where, every_picture=not by_item)
    for number, query in enumerate(QUERIES):
        assert result.ids[number] == expected.search(query, 10, allowed, by_item)


def test_ids_and_items_are_excluded_wherever_they_lie(sharded: ShardedGallery, expected: Expected) -> None:
    excluded = ["p0", "p41", "p60", "i4", "nobody"]
    allowed = {
        name for name, record in expected.metadata.items() if name not in excluded and record.get("item") != "i4"
    }
    result = sharded.search(QUERIES, 10, excluded, every_picture=True)
    for number, query in enumerate(QUERIES):
        assert result.ids[number] == expected.search(query, 10, allowed)
    assert sharded.find_unknown(excluded) == ["nobody"]


def test_metadata_come_from_the_shard_that_holds_the_picture(sharded: ShardedGallery, expected: Expected) -> None:
    ids = ["p71", "nobody", "p0", "p44"]
    assert sharded.metadata(ids) == [expected.metadata["p71"], {}, expected.metadata["p0"], expected.metadata["p44"]]


def test_an_id_of_two_shards_is_answered_once_by_the_better_picture(tmp_path: Path) -> None:
    parts = [write_gallery(tmp_path / name, [{}] * 5, seed=seed) for seed, name in enumerate(("a", "b"))]
    with closing(ShardedGallery.open([tmp_path / "a", tmp_path / "b"])) as gallery:
        result = gallery.search(QUERIES, 10)
        for number, query in enumerate(QUERIES):
            best = {name: max(float(part.vectors[name] @ query) for part in parts) for name in parts[0].vectors}
            assert result.ids[number] == sorted(best, key=lambda name: -best[name])


def test_shards_of_different_spaces_are_refused(tmp_path: Path) -> None:
    write_gallery(tmp_path / "a", [{}] * 3)
    write_gallery(tmp_path / "b", [{}] * 3, target_space="other")
    with pytest.raises(SpaceMismatchError, match="build all shards with one server bundle"):
        ShardedGallery.open([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(BundleError, match="no gallery at"):
        ShardedGallery.open([tmp_path / "a", tmp_path / "none"])
    with pytest.raises(RequestError, match="at least one shard"):
        ShardedGallery([])


def test_a_key_that_one_shard_cannot_filter_by_is_refused(sharded: ShardedGallery) -> None:
    with pytest.raises(RequestError, match="no picture has 'prize'"):
        sharded.search(QUERIES, 1, where=parse_filter("prize = 1"))


def test_changes_to_one_shard_are_followed_and_a_damaged_one_stays(
    folders: list[Path], expected: Expected, caplog: pytest.LogCaptureFixture
) -> None:
    holder = GalleryHolder(ShardedGallery.open(folders))
    follower = Follower(holder)
    assert not follower.refresh()
    with holder.lease() as before:
        vector = unit_rows(1, 77)[0]
        with edit_gallery(folders[1], "test") as editor:
            editor.add([new_picture("new", vector, {"n": 1, "fresh": True})])
            editor.remove(["p41"])
        assert follower.refresh() and not follower.refresh()
        assert before.search(vector[None], 1).ids != [["new"]]  # a request keeps what it began with
    with holder.lease() as after:
        assert after.search(vector[None], 1, where=parse_filter("fresh = true")).ids == [["new"]]
        assert after.full_version == "000001,000001+2,000001" and after.size == sum(SIZES)
        assert after.find_unknown(["p41"]) == ["p41"]
    (folders[2] / "CURRENT").write_text("000009\n")
    with edit_gallery(folders[0], "test") as editor:
        editor.remove(["p0"])
    with caplog.at_level(logging.WARNING):
        assert follower.refresh()
    assert "shard2 stays at 000001" in caplog.text
    with holder.lease() as after:
        assert after.full_version == "000001+1,000001+2,000001"
        np.testing.assert_array_equal([len(ids) for ids in after.search(QUERIES, 100, every_picture=True).ids], 71)
    holder.close()


def test_shards_are_named_on_the_command_line() -> None:
    assert parse_galleries(["a=x", "a+=y", "b", "a+=z=1"]) == {"a": [Path("x"), Path("y"), Path("z=1")], "b": Path("b")}
    with pytest.raises(ListenError, match="name its first shard before"):
        parse_galleries(["a+=x"])
    with pytest.raises(ListenError, match=r"make it a shard of the other, as in --gallery a\+=y"):
        parse_galleries(["a=x", "a=y"])
