"""Triplet lists in the official layouts, whole and broken."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from asymcir_training import DataError
from asymcir_training.triplets.formats import (
    read_triplets,
)


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def _coco(number: int, split: str = "train") -> str:
    return f"{split}2014/COCO_{split}2014_{number:012}.jpg"


def _lasco(number: int) -> dict[str, Any]:
    return {
        "qid": number,
        "query-image": [number, _coco(number)],
        "query-text": f"make it {number}",
        "target-image": [number + 1, _coco(number + 1)],
    }


def _write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_lasco(tmp_path: Path) -> None:
    path = _write(tmp_path / "lasco_train.json", [_lasco(0), _lasco(1)])
    _touch(tmp_path, *(_coco(number) for number in range(3)))
    found = read_triplets(path)
    assert found == read_triplets(path, format="lasco")
    assert [triplet.modifier for triplet in found] == ["make it 0", "make it 1"]
    assert found[1].reference == tmp_path / _coco(1) and found[1].target == tmp_path / _coco(2)
    assert found[1].identity == "1" and found[1].answers == (tmp_path / _coco(2),)


def test_llavasco_joins_its_captions_in_both_writings(tmp_path: Path) -> None:
    captions = {"llava_reference_caption": "A cat. It sits.", "llava_target_caption": "a dog on grass "}
    by_id = {"reference_image_id": 7, "relative_caption": "dog instead", "target_image_id": "8", **captions}
    path = _write(tmp_path / "train_llavasco.json", [{**_lasco(0), **captions}, by_id])
    _touch(tmp_path / "coco", *(_coco(number) for number in (0, 1, 7, 8)))
    found = read_triplets(path, images=tmp_path / "coco")
    assert found == read_triplets(path, format="llavasco", images=tmp_path / "coco")
    assert [triplet.modifier for triplet in found] == [
        "make it 0 with a dog on grass",
        "dog instead with a dog on grass",
    ]
    assert found[1].target == tmp_path / "coco" / _coco(8)
    val = _write(tmp_path / "val_llavasco.json", [by_id])
    _touch(tmp_path, _coco(7, "val"), _coco(8, "val"))
    assert read_triplets(val, format="llavasco")[0].reference == tmp_path / _coco(7, "val")
    nameless = _write(tmp_path / "llavasco.json", [by_id])
    with pytest.raises(DataError, match=r"llavasco.json, record 1: .*split.*rename"):
        read_triplets(nameless, format="llavasco")


def _cirr(folder: Path, split: str = "train") -> Path:
    record = {
        "pairid": 12,
        "reference": "train-1-img0",
        "target_hard": "train-2-img1",
        "target_soft": {"train-2-img1": 1.0, "train-1-img0": -1.0},
        "caption": "show two of them",
        "img_set": {"id": 3, "members": [], "reference_rank": 0, "target_rank": 2},
    }
    if split == "test1":
        del record["target_hard"], record["target_soft"]
    names = {"train-1-img0": "./train/34/train-1-img0.png", "train-2-img1": "./train/2/train-2-img1.png"}
    _write(folder / "image_splits" / f"split.rc2.{split}.json", names)
    return _write(folder / "captions" / f"cap.rc2.{split}.json", [record])


def test_cirr_finds_its_pictures_through_the_split(tmp_path: Path) -> None:
    path, images = _cirr(tmp_path / "cirr"), tmp_path / "nlvr2"
    _touch(images, "train/34/train-1-img0.png", "train/2/train-2-img1.png")
    (found,) = read_triplets(path, images=images)
    assert [found] == read_triplets(path, format="cirr", images=images)
    assert (found.modifier, found.identity) == ("show two of them", "12")
    assert found.reference == images / "train/34/train-1-img0.png" and found.targets == ()


def test_cirr_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder that holds them as images"):
        read_triplets(_cirr(tmp_path))
    with pytest.raises(DataError, match=r"no target_hard.*cap.rc2.train.json"):
        read_triplets(_cirr(tmp_path / "t", "test1"), images=tmp_path)
    path = _cirr(tmp_path)
    _write(tmp_path / "image_splits" / "split.rc2.train.json", {"train-1-img0": "a.png"})
    with pytest.raises(DataError, match=r"record 1: .*split.rc2.train.json does not list the picture 'train-2-img1'"):
        read_triplets(path, images=tmp_path)
    (tmp_path / "image_splits" / "split.rc2.train.json").unlink()
    with pytest.raises(DataError, match=r"cannot read .*split.rc2.train.json.*keep its folders"):
        read_triplets(path, images=tmp_path)


def test_training_sketchy_asks_with_null_text(tmp_path: Path) -> None:
    lines = (
        "hot-air_balloon 256x256/sketch/a.png 256x256/photo/b.jpg\n\nzebra 256x256/sketch/c.png 256x256/photo/d.jpg\n"
    )
    path = _write(tmp_path / "Sketchy" / "zeroshot1" / "training_sketchy.txt", lines)
    _touch(tmp_path / "Sketchy" / "256x256", "sketch/a.png", "photo/b.jpg", "sketch/c.png", "photo/d.jpg")
    found = read_triplets(path)
    assert found == read_triplets(path, format="sketchy")
    assert [(triplet.identity, triplet.modifier) for triplet in found] == [("hot-air_balloon", ""), ("zebra", "")]
    assert found[1].target == tmp_path / "Sketchy" / "256x256/photo/d.jpg"
    _write(path, lines + "zebra 256x256/sketch/c d.png 256x256/photo/d.jpg\n")
    with pytest.raises(DataError, match=r"training_sketchy.txt:4: expected .*three words, got 4"):
        read_triplets(path)


def test_json_lines_with_several_answers(tmp_path: Path) -> None:
    record = {"reference": "a.png", "modifier": "is red", "target": "b.png", "targets": ["c.png", "b.png"], "id": 5}
    record |= {"concept": "cat"}
    path = _write(tmp_path / "list.jsonl", json.dumps(record) + "\n\n" + '{"reference": "b.png", "target": "a.png"}\n')
    _touch(tmp_path, "a.png", "b.png", "c.png")
    first, second = read_triplets(path, format="jsonl")
    assert first.answers == (tmp_path / "b.png", tmp_path / "c.png") and first.identity == "5"
    assert (first.concept, second.concept) == ("cat", "")
    assert (second.modifier, second.identity, second.answers) == ("", "", (tmp_path / "a.png",))
    assert read_triplets(path) == [first, second]


def test_missing_pictures_are_counted_and_named_and_none_left_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(tmp_path / "lasco_train.json", [_lasco(number) for number in range(8)])
    _touch(tmp_path, *(_coco(number) for number in range(4)))
    with caplog.at_level(logging.WARNING):
        assert len(read_triplets(path)) == 3
    (message,) = [record.getMessage() for record in caplog.records]
    for number in (4, 5, 6):
        assert _coco(number) in message
    assert _coco(7) not in message and "5 of 9 are missing" in message and "5 of 8 triplets are left out" in message
    with pytest.raises(DataError, match=r"9 of 9.*pass the folder"):
        read_triplets(path, images=tmp_path / "elsewhere")


def test_samples_are_spread_stepped_or_drawn(tmp_path: Path) -> None:
    path = _write(tmp_path / "lasco_train.json", [_lasco(number) for number in range(100)])
    _touch(tmp_path, *(_coco(number) for number in range(101)))

    def numbers(**options: Any) -> list[int]:
        return [int(triplet.identity) for triplet in read_triplets(path, **options)]

    assert numbers(limit=5) == [0, 20, 40, 60, 80]
    assert numbers(limit=3, step=7) == [0, 7, 14]
    drawn = numbers(limit=10, seed=1)
    assert drawn == numbers(limit=10, seed=1) == sorted(set(drawn)) and drawn != numbers(limit=10, seed=2)
    assert numbers(limit=1000) == list(range(100))
    for options in ({"seed": 1}, {"limit": 0}, {"limit": 2, "step": 2, "seed": 1}):
        with pytest.raises(DataError, match="limit"):
            numbers(**options)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "lasco_train.json",
            [{"qid": 1, "query-image": [1, "a"], "query-text": "x"}],
            "record 1: .*target-image is not",
        ),
        (
            "lasco_train.json",
            [_lasco(0), {**_lasco(1), "query-image": "a.png"}],
            r"record 2: .*query-image to be \[id, ",
        ),
        ("lasco_train.json", [_lasco(0), "text"], "record 2: expected an object, got 'text'"),
        ("lasco_train.json", json.dumps([_lasco(0)])[:-3], "JSON list of records .* is the download complete"),
        ("lasco_train.json", '[{"qid": 1,', "is the download complete"),
        ("other.json", [{"a": 1}], "expected the records of LaSCo .* got one with a"),
        ("empty.json", [], "holds no triplet"),
        ("empty.txt", "\n", "holds no triplet"),
        (
            "list.jsonl",
            '{"reference": "a.png", "target": "a.png"}\n{"reference": 3, "target": "b"}',
            "list.jsonl:2: exp",
        ),
        ("list.jsonl", '{"reference": "a.png"}', "list.jsonl:1: expected .*reference.*modifier.*target"),
        ("list.jsonl", '{"reference": "a.png", "target": "b.png", "targets": "c.png"}', "list.jsonl:1: expected"),
        ("words.txt", "neither this nor that", "words.txt:1: expected a JSON list .*Training-Sketchy"),
        ("train_llavasco.json", [{"llava_target_caption": "x"}], "record 1: .*LlavaSCo.*reference_image_id"),
        (
            "train_llavasco.json",
            [
                {
                    "reference_image_id": "../7",
                    "relative_caption": "x",
                    "target_image_id": 8,
                    "llava_target_caption": "y",
                }
            ],
            "record 1: expected a COCO id",
        ),
    ],
)
def test_broken_lists_are_named_with_the_place(tmp_path: Path, name: str, content: Any, expected: str) -> None:
    path = _write(tmp_path / name, content)
    with pytest.raises(DataError, match=expected) as caught:
        read_triplets(path)
    assert str(path) in str(caught.value)


def test_an_absent_list_and_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the triplets"):
        read_triplets(tmp_path / "none.json")
    with pytest.raises(DataError, match="expected a format of auto, lasco, llavasco, cirr, sketchy, jsonl, got 'coco'"):
        read_triplets(tmp_path / "none.json", format="coco")  # type: ignore[arg-type]
