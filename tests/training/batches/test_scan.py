import json
import logging
import threading
from pathlib import Path

import pytest
from asymcir_training.batches import scan as scan_module
from asymcir_training.batches.scan import PassProgress, Quarantine, only_one_process, scan_pictures
from asymcir_training.errors import DataError
from asymcir_training.pictures.sets import open_pictures


@pytest.fixture
def pictures(write, picture, corrupt, tmp_path: Path):
    files = {f"{number}.png": picture(number) for number in range(6)} | corrupt
    return open_pictures([write("folder", tmp_path, files)])


def _refuse(*_: object, **__: object):
    raise AssertionError("it was decoded again")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_decoded_is_listed_and_the_rest_kept(
    workers: int, pictures, corrupt, tmp_path: Path, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(scan_module, "_PICTURES_A_JOB", 2)
    with caplog.at_level(logging.INFO):
        scan = scan_pictures(pictures, folder=tmp_path / "work", workers=workers)
    assert [pictures.keys[number] for number in scan.kept] == [f"{number}.png" for number in range(6)]
    assert {key for key, _ in scan.problems} == set(corrupt)
    (listed,) = (tmp_path / "work").glob("scan-*/quarantine.jsonl")
    records = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {record["key"]: record["reason"] for record in records} == dict(scan.problems)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "5 pictures" in warnings[0] and str(listed) in warnings[0]
    assert "11/11 pictures" in caplog.text and "left" in caplog.text


def test_a_scan_is_done_once(pictures, tmp_path: Path, monkeypatch) -> None:
    first = scan_pictures(pictures, folder=tmp_path)
    monkeypatch.setattr(scan_module, "decode_image", _refuse)
    second = scan_pictures(pictures, folder=tmp_path)
    assert (second.kept == first.kept).all() and second.problems == first.problems


def test_an_interrupted_scan_goes_on(pictures, tmp_path: Path, monkeypatch) -> None:
    whole = scan_pictures(pictures, folder=tmp_path / "whole")
    monkeypatch.setattr(scan_module, "_PICTURES_A_JOB", 3)
    monkeypatch.setattr(scan_module, "_SAVE_EVERY_S", -1.0)
    decode, seen = scan_module.decode_image, []

    def stop_at_the_ninth(data: bytes, *, name: str):
        if len(seen) == 8:
            raise KeyboardInterrupt
        seen.append(name)
        return decode(data, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "decode_image", stop_at_the_ninth)
        with pytest.raises(KeyboardInterrupt):
            scan_pictures(pictures, folder=tmp_path / "cut")
    (listed,) = (tmp_path / "cut").glob("scan-*/quarantine.jsonl")
    with listed.open("a") as stream:  # killed while it wrote of pictures that are not done
        stream.write('{"number": 8, "key": "x", "reason": "y"}\n{"numb')
    again = []

    def note(data: bytes, *, name: str):
        again.append(name)
        return decode(data, name=name)

    monkeypatch.setattr(scan_module, "decode_image", note)
    resumed = scan_pictures(pictures, folder=tmp_path / "cut")
    assert len(again) == len(pictures) - 6 and (resumed.kept == whole.kept).all()
    assert sorted(resumed.problems) == sorted(whole.problems)


def test_nothing_usable_is_an_error(write, tmp_path: Path) -> None:
    pictures = open_pictures([write("zip", tmp_path, {"a.png": b"", "b.png": b"x"})])
    for _ in range(2):
        with pytest.raises(DataError, match="none of 2 pictures"):
            scan_pictures(pictures, folder=tmp_path)


def test_a_damaged_scan_says_what_to_remove(pictures, tmp_path: Path) -> None:
    scan_pictures(pictures, folder=tmp_path)
    (state,) = tmp_path.glob("scan-*/scan.json")
    state.write_text("{")
    with pytest.raises(DataError, match="remove"):
        scan_pictures(pictures, folder=tmp_path)


def test_a_quarantine_carries_any_name(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    quarantine = Quarantine(path, done=0, before=[("猫.png", "a link")])
    quarantine.add([(1, "caf\udce9.png", "kaputt: ü"), (4, "d.png", "x")])
    assert quarantine.keep(6).tolist() == [0, 2, 3, 5]
    assert "猫" in path.read_text(encoding="utf-8")
    again = Quarantine(path, done=3, before=[("猫.png", "a link")])
    assert again.problems == [("猫.png", "a link"), ("caf\udce9.png", "kaputt: ü")] and again.numbers == [1]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_progress_tells_rate_and_time_left(caplog, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(scan_module.time, "monotonic", lambda: now[0])
    progress = PassProgress("scanned", total=1000, first=200)
    with caplog.at_level(logging.INFO):
        for now[0], done in ((101.0, 210), (120.0, 400), (121.0, 410), (180.0, 1000)):
            progress.update(done, 3)
    assert [record.getMessage() for record in caplog.records] == [
        "scanned 400/1000 pictures, 10.0/s, 1 min 0 s left, 3 put aside",
        "scanned 1000/1000 pictures, 10.0/s, 0 s left, 3 put aside",
    ]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    order = []

    def wait() -> None:
        with only_one_process(tmp_path, "a thing"):
            order.append("second")

    with only_one_process(tmp_path, "a thing"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
