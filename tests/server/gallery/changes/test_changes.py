"""Random changes to a gallery, against plain Python, before and after they are merged."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asymcir_common import BundleError
from asymcir_protos import parse_filter
from asymcir_server import Gallery
from asymcir_server.errors import GalleryBuildError, GalleryLockedError, RequestError
from asymcir_server.gallery import compact_gallery, edit_gallery
from asymcir_server.gallery.changes.editor import ADDED, REJECTED, REPLACED, UNCHANGED
from asymcir_server.gallery.history import list_snapshots, remove_old_snapshots, rollback, verify_snapshots
from asymcir_server.gallery.indexes import KINDS
from asymcir_server.gallery.snapshots import lock_gallery
from vector_galleries import Expected, new_picture, unit_rows, write_gallery

COLOURS = ("red", "green", "blue")


def describe(number: int, draw: random.Random) -> dict[str, Any]:
    record: dict[str, Any] = {"n": number, "colour": draw.choice(COLOURS)}
    if draw.random() < 0.5:
        record["item"] = f"item{draw.randrange(30)}"
    return record


FILTERS = {
    "n < 50": lambda record: "n" in record and record["n"] < 50,
    'colour = "red"': lambda record: record.get("colour") == "red",
    'colour != "red"': lambda record: record.get("colour") != "red",
    'not n >= 20 or colour in ("blue")': lambda record: (
        not ("n" in record and record["n"] >= 20) or record.get("colour") == "blue"
    ),
    "exists item": lambda record: "item" in record,
    'item prefix "item1"': lambda record: str(record.get("item", "")).startswith("item1"),
}


def check(gallery: Gallery, expected: Expected, draw: random.Random, *, exact: bool = True) -> None:
    everything = set(expected.vectors)
    items = {record.get("item") for record in expected.metadata.values()} - {None}
    alone = sum(1 for record in expected.metadata.values() if "item" not in record)
    assert gallery.size == len(everything)
    assert gallery.items == (len(items) + alone if items else 0)
    names = [*draw.sample(sorted(everything), 20), "never there"]
    assert gallery.metadata(names) == [expected.metadata.get(name, {}) for name in names]
    query = unit_rows(2, draw.randrange(10**6))
    excluded = draw.sample(sorted(everything), 5)
    for where in (None, *FILTERS):
        allowed = everything if where is None else {n for n in everything if FILTERS[where](expected.metadata[n])}
        for without in ([], excluded):
            for every_picture in (True, False):
                left = {n for n in allowed if not {n, expected.metadata[n].get("item")} & set(without)}
                found = gallery.search(
                    query,
                    10,
                    without,
                    where=None if where is None else parse_filter(where),
                    every_picture=every_picture,
                )
                wanted = [expected.search(one, 10, left, not every_picture) for one in query]
                if exact:
                    assert found.ids == wanted, (where, without, every_picture)
                else:
                    assert {name for ids in found.ids for name in ids} <= left
                    assert [len(ids) for ids in found.ids] == [len(ids) for ids in wanted]
                    assert (
                        np.mean([len(set(a) & set(b)) / max(len(b), 1) for a, b in zip(found.ids, wanted, strict=True)])
                        > 0.7
                    )
                for ids, shown in zip(found.ids, found.items, strict=True):
                    assert shown == [expected.metadata[name].get("item", "") for name in ids]


def change(folder: Path, expected: Expected, draw: random.Random, step: int) -> None:
    with edit_gallery(folder, "test") as editor:
        vectors = unit_rows(30, 1000 + step)
        records = [describe(draw.randrange(200), draw) for _ in vectors]
        names = [f"a{step}-{number}" for number in range(30)]
        new = [new_picture(*parts) for parts in zip(names, vectors, records, strict=True)]
        assert [one.status for one in editor.add(new)] == [ADDED] * 30
        assert [one.status for one in editor.add(new[:3])] == [UNCHANGED] * 3
        expected.vectors |= dict(zip(names, vectors, strict=True))
        expected.metadata |= dict(zip(names, records, strict=True))
        gone = draw.sample(sorted(expected.vectors), 25)
        assert editor.remove([*gone, "never there", gone[0]]) == (25, ["never there"])
        for name in gone:
            del expected.vectors[name], expected.metadata[name]
        changed = draw.sample(sorted(expected.vectors), 20)
        updates = [
            (name, {"colour": draw.choice(COLOURS), "item": draw.choice([None, "item1", "new item"])})
            for name in changed
        ]
        report = editor.update([*updates, ("never there", {"n": 1})])
        assert report.updated + report.unchanged == 20 and report.missing == ["never there"]
        for name, keys in updates:
            merged = expected.metadata[name] | keys
            expected.metadata[name] = {key: value for key, value in merged.items() if value is not None}
        back = gone[0]
        vector = unit_rows(1, 5000 + step)[0]
        assert editor.add([new_picture(back, vector, {"n": 1})])[0].status == ADDED  # with a removed one's id
        expected.vectors.pop(back, None)
        expected.vectors[back], expected.metadata[back] = vector, {"n": 1}
        other = changed[0]
        vector = unit_rows(1, 6000 + step)[0]
        assert editor.add([new_picture(other, vector, {"n": 2})])[0].status == REJECTED
        assert editor.add([new_picture(other, vector, {"n": 2})], replace=True)[0].status == REPLACED
        del expected.vectors[other]
        expected.vectors[other], expected.metadata[other] = vector, {"n": 2}
        check(editor.gallery, expected, draw)


def test_random_changes_answer_as_plain_python_does_and_so_does_their_merge(tmp_path: Path) -> None:
    draw = random.Random(4)
    expected = write_gallery(tmp_path, [describe(n, draw) for n in range(150)])
    follower = Gallery.open(tmp_path)
    check(follower, expected, draw)
    for step in range(4):
        change(tmp_path, expected, draw, step)
        newer = follower.refreshed()  # from a little at a time
        assert newer is not follower and newer.change > follower.change
        assert newer.refreshed() is newer
        follower.close()
        follower = newer
        check(follower, expected, draw)
        anew = Gallery.open(tmp_path)  # all of it at once
        check(anew, expected, draw)
        anew.close()
        assert verify_snapshots(tmp_path)
        if step == 1:
            report = compact_gallery(tmp_path)
            assert (report.version, report.size) == ("000002", len(expected.vectors))
            check(follower, expected, draw)  # goes on with the old one
            follower.close()
            follower = Gallery.open(tmp_path)
            assert follower.full_version == "000002" and follower.describe_changes() == (0, 0, 0)
            check(follower, expected, draw)
    follower.close()
    assert verify_snapshots(tmp_path) == ["000001", "000002"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "exact"])
def test_every_kind_of_index_leaves_out_what_was_removed_and_finds_what_was_added(tmp_path: Path, kind: str) -> None:
    draw = random.Random(5)
    expected = write_gallery(tmp_path, [describe(n, draw) for n in range(3000)], kind=kind)
    with edit_gallery(tmp_path, "test") as editor:
        gone = draw.sample(sorted(expected.vectors), 2000)
        editor.remove(gone)
        for name in gone:
            del expected.vectors[name], expected.metadata[name]
        vectors, records = unit_rows(100, 9), [describe(n, draw) for n in range(100)]
        editor.add([new_picture(f"a{n}", vectors[n], records[n]) for n in range(100)])
        expected.vectors |= {f"a{n}": vectors[n] for n in range(100)}
        expected.metadata |= {f"a{n}": records[n] for n in range(100)}
        for _ in range(3):
            check(editor.gallery, expected, draw, exact=False)
        found = editor.gallery.search(vectors[:20], 1, every_picture=True)
        assert found.ids == [[f"a{n}"] for n in range(20)]
        query = unit_rows(1, 3)
        assert len(editor.gallery.search(query, 5000, every_picture=True).ids[0]) == len(expected.vectors)
    assert compact_gallery(tmp_path).index_kind == kind
    opened = Gallery.open(tmp_path)
    check(opened, expected, draw, exact=False)
    opened.close()


def test_columns_widen_with_what_is_added_and_updated(tmp_path: Path) -> None:
    write_gallery(tmp_path, [{"size": n, "tag": "a", "flag": n % 2 == 0} for n in range(10)])
    query = unit_rows(1, 0)

    def find(editor: Any, where: str) -> set[str]:
        return set(editor.gallery.search(query, 50, where=parse_filter(where)).ids[0])

    with edit_gallery(tmp_path, "test") as editor:
        with pytest.raises(RequestError, match="no picture has 'price'"):
            find(editor, "price < 2")
        with pytest.raises(RequestError, match="expected a number for 'size'"):
            find(editor, 'size = "3"')
        rows = unit_rows(4, 8)
        editor.add(
            [
                new_picture("a", rows[0], {"size": 2.5, "tag": 7, "flag": 1, "price": 1.5}),
                new_picture("b", rows[1], {"size": "3", "tag": "a", "flag": True}),
                new_picture("c", rows[2], {"size": None, "price": True}),
            ]
        )
        assert find(editor, "size < 3") == {"p0", "p1", "p2", "a"}
        assert find(editor, 'size = "3"') == {"b"} and find(editor, "size = 3") == {"p3"}
        assert find(editor, 'size != "3"') == {f"p{n}" for n in range(10)} | {"a", "c"}
        assert find(editor, "flag = 1") == {"a"} and find(editor, "flag = true") == {
            f"p{n}" for n in range(0, 10, 2)
        } | {"b"}
        assert find(editor, "price < 2") == {"a"} and find(editor, "exists price") == {"a", "c"}
        assert find(editor, "tag = 7") == {"a"} and find(editor, 'tag prefix "a"') == {f"p{n}" for n in range(10)} | {
            "b"
        }
        assert find(editor, 'tag in ("a", 7) and not exists price') == {f"p{n}" for n in range(10)} | {"b"}
        types = {key: column.type for key, column in editor.gallery.columns.by_key.items()}
        assert types == {"size": "mixed", "tag": "mixed", "flag": "mixed", "price": "mixed"}
        editor.update([("p1", {"price": 0.5}), ("c", {"price": 3})])
        assert find(editor, "price < 2") == {"a", "p1"}
        assert editor.gallery.columns.by_key["price"].type == "real"
    compact_gallery(tmp_path)
    opened = Gallery.open(tmp_path)
    assert set(opened.search(query, 50, where=parse_filter("price < 2")).ids[0]) == {"a", "p1"}
    assert {key: column.type for key, column in opened.columns.by_key.items()} == types | {"price": "real"}
    opened.close()


def test_changes_belong_to_their_snapshot(tmp_path: Path) -> None:
    write_gallery(tmp_path, [{"n": n} for n in range(10)])
    rows = unit_rows(3, 8)
    with edit_gallery(tmp_path, "test") as editor:
        editor.add([new_picture("a", rows[0], {})])
        editor.remove(["p1"])
        editor.update([("p2", {"n": 7})])
    compact_gallery(tmp_path)
    with edit_gallery(tmp_path, "test") as editor:
        editor.add([new_picture("b", rows[1], {}), new_picture("c", rows[2], {})])
    found = [
        (one.version, one.size, one.added, one.removed, one.updated, one.current) for one in list_snapshots(tmp_path)
    ]
    assert found == [("000001", 10, 1, 1, 1, False), ("000002", 12, 2, 0, 0, True)]

    def ids() -> set[str]:
        opened = Gallery.open(tmp_path)
        found = set(opened.search(rows[:1], 50).ids[0])
        opened.close()
        return found

    base = {f"p{n}" for n in range(10)}
    assert ids() == base - {"p1"} | {"a", "b", "c"}
    assert rollback(tmp_path) == "000001" and ids() == base - {"p1"} | {"a"}
    assert rollback(tmp_path, "1", discard_changes=True) == "000001" and ids() == base
    assert rollback(tmp_path, "2") == "000002" and ids() == base - {"p1"} | {"a", "b", "c"}
    assert compact_gallery(tmp_path).version == "000003"
    assert compact_gallery(tmp_path).version == "000003"  # nothing to merge
    assert remove_old_snapshots(tmp_path, keep=1) == ["000001", "000002"]
    assert [path.name for path in (tmp_path / "changes").iterdir()] == ["000003.sqlite"]
    with edit_gallery(tmp_path, "test") as editor:
        editor.remove([f"p{n}" for n in range(10)] + ["a", "b", "c"])
        assert editor.gallery.size == 0 and editor.gallery.search(rows, 5).ids == [[], [], []]
    with pytest.raises(GalleryBuildError, match="every picture"):
        compact_gallery(tmp_path)


def test_an_update_that_leads_to_unusable_metadata_changes_nothing(tmp_path: Path) -> None:
    write_gallery(tmp_path, [{"n": n} for n in range(10)])
    with edit_gallery(tmp_path, "test") as editor:
        editor.update([("p1", {"a": "x" * 40_000})])
        for keys, words in (({"b": "x" * 40_000}, "may have"), ({"item": [1]}, "expected a text or a whole number")):
            with pytest.raises(GalleryBuildError, match=words):
                editor.update([("p2", {"n": 99}), ("p1", keys)])
        assert editor.gallery.metadata(["p1", "p2"]) == [{"n": 1, "a": "x" * 40_000}, {"n": 2}]


def test_a_second_writer_is_told_who_holds_the_gallery(tmp_path: Path) -> None:
    write_gallery(tmp_path, [{"n": n} for n in range(10)])
    with edit_gallery(tmp_path, "gallery add"):
        for write in (
            lambda: compact_gallery(tmp_path, wait_s=0.1),
            lambda: rollback(tmp_path, "1"),
            lambda: remove_old_snapshots(tmp_path),
        ):
            with pytest.raises(GalleryLockedError, match=r"`asymcir gallery add`, process \d+ on .+ since 20"):
                write()
    with lock_gallery(tmp_path):
        pass


def test_changes_of_another_snapshot_are_refused(tmp_path: Path) -> None:
    write_gallery(tmp_path / "a", [{"n": n} for n in range(10)])
    write_gallery(tmp_path / "b", [{"n": n} for n in range(10)], seed=2)
    with edit_gallery(tmp_path / "a", "test") as editor:
        editor.remove(["p1"])
    (tmp_path / "b/changes").mkdir()
    (tmp_path / "a/changes/000001.sqlite").rename(tmp_path / "b/changes/000001.sqlite")
    with pytest.raises(BundleError, match="another snapshot"):
        Gallery.open(tmp_path / "b")
    rollback(tmp_path / "b", "1", discard_changes=True)
    opened = Gallery.open(tmp_path / "b")
    assert opened.size == 10
    opened.close()
