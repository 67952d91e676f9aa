"""A store of rows: what ends a write, and what each error of its index is called."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from asymcir_training.errors import CacheError
from asymcir_training.teacher import keyed_rows
from asymcir_training.teacher.keyed_rows import KeyedRows, Part

WIDTH = 3


def _open(folder: Path) -> KeyedRows:
    return KeyedRows(folder, {"of": "a test"}, [Part(name="rows.f32", dtype=np.float32)], what="the test cache")


def _key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _append(store: KeyedRows, numbers: range, *, most: int, end: Callable[[], None] = lambda: None) -> None:
    with store.write([(WIDTH,)], most=most) as writer:
        for number in numbers:
            writer.append([_key(number)], [np.full((1, WIDTH), number, np.float32)])
        end()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fail() -> None:
    raise CacheError("not finite")


@pytest.mark.parametrize(("end", "error"), [(_interrupt, KeyboardInterrupt), (_fail, CacheError)])
def test_an_error_keeps_what_was_appended_and_gives_the_room_back(
    end: Callable[[], None], error: type[BaseException], tmp_path: Path
) -> None:
    _append(_open(tmp_path / "x"), range(2), most=2)
    with pytest.raises(error):
        _append(_open(tmp_path / "x"), range(2, 5), most=1000, end=end)
    store = _open(tmp_path / "x")
    assert (tmp_path / "x" / "rows.f32").stat().st_size == 5 * WIDTH * 4
    assert store.find([_key(number) for number in range(6)]).tolist() == [0, 1, 2, 3, 4, -1]
    (rows,) = store.read()
    assert rows is not None and rows[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_rows_that_cannot_be_kept_at_an_error_are_written_again(tmp_path: Path) -> None:
    _append(_open(tmp_path / "x"), range(2), most=2)
    journal = tmp_path / "x" / "index.sqlite-journal"

    def end() -> None:
        journal.mkdir()  # nothing can be written to the index any more
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _append(_open(tmp_path / "x"), range(2, 5), most=1000, end=end)
    journal.rmdir()
    _append(_open(tmp_path / "x"), range(2, 4), most=2)
    (rows,) = _open(tmp_path / "x").read()
    assert rows is not None and rows[:, 0].tolist() == [0, 1, 2, 3]
    assert (tmp_path / "x" / "rows.f32").stat().st_size == 4 * WIDTH * 4


def test_rows_that_are_gone_stay_gone_after_an_error(tmp_path: Path) -> None:
    _append(_open(tmp_path / "x"), range(4), most=4)
    os.truncate(tmp_path / "x" / "rows.f32", WIDTH * 4)
    for _ in range(2):
        with pytest.raises(CacheError, match=r"rows\.f32 has 12 bytes, its 4 rows have 48"):
            _append(_open(tmp_path / "x"), range(4, 5), most=1)


def test_an_index_that_another_process_holds_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _append(_open(tmp_path / "x"), range(2), most=2)
    monkeypatch.setattr(keyed_rows, "_BUSY_S", 0.05)
    with closing(sqlite3.connect(tmp_path / "x" / "index.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CacheError, match=r"another process holds .*/x .*: wait for it or end it") as caught:
            _open(tmp_path / "x").find([_key(0)])
    assert "remove" not in str(caught.value)
    assert _open(tmp_path / "x").find([_key(0)]).tolist() == [0]


def test_an_index_that_cannot_be_opened_is_kept(tmp_path: Path) -> None:
    _append(_open(tmp_path / "x"), range(2), most=2)
    (tmp_path / "x" / "index.sqlite-journal").mkdir()
    with pytest.raises(CacheError, match=r"/x cannot be used \(index.sqlite: .*\); it is kept") as caught:
        _append(_open(tmp_path / "x"), range(2, 3), most=1)
    assert "remove" not in str(caught.value)


def test_a_state_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x" / "cache.json").mkdir(parents=True)
    with pytest.raises(CacheError, match=r"/x cannot be used \(cache.json: Is a directory\); it is kept"):
        _open(tmp_path / "x")


@pytest.mark.parametrize("damage", ["no database", "another schema", "a page"])
def test_a_damaged_index_is_to_be_removed(damage: str, tmp_path: Path) -> None:
    _append(_open(tmp_path / "x"), range(2), most=2)
    path = tmp_path / "x" / "index.sqlite"
    if damage == "no database":
        path.write_bytes(b"x" * 5000)
    elif damage == "another schema":
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DROP TABLE rows")
    else:
        content = path.read_bytes()
        path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    with pytest.raises(CacheError, match=r"/x is damaged \(index.sqlite: .*\): remove that folder"):
        _open(tmp_path / "x").find([_key(0)])
    shutil.rmtree(tmp_path / "x")
    _append(_open(tmp_path / "x"), range(2), most=2)
