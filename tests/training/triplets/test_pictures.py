"""Which pictures triplets need, and the gallery that they are searched in."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from asymcir_training import DataError
from asymcir_training.triplets.pictures import gather_gallery, number_concepts, number_pictures
from asymcir_training.triplets.triplet import PictureTriplet


def _pictures(root: Path, *names: str) -> list[Path]:
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).write_bytes(name.encode())
    return [root / name for name in names]


def test_pictures_are_numbered_once_those_that_ask_first(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    triplets = [
        PictureTriplet(reference=a, modifier="", target=c),
        PictureTriplet(reference=b, modifier="", target=a),
        PictureTriplet(reference=a, modifier="x", target=b),
    ]
    found = number_pictures(triplets)
    assert (found.paths, found.asking) == ([a, b, c], 2)
    assert found.references.tolist() == [0, 1, 0] and found.targets.tolist() == [2, 0, 1]


def test_targets_of_one_concept_are_numbered_alike(tmp_path: Path) -> None:
    concepts = {"a": "cat", "b": "", "c": "cat", "d": "dog"}
    triplets = [
        PictureTriplet(reference=tmp_path / "r", modifier="", target=tmp_path / name, concept=concept)
        for name, concept in concepts.items()
    ]
    found = number_pictures(triplets)
    answers = number_concepts(triplets, found.targets, pictures=len(found.paths))
    assert answers.tolist() == [0, 1, 2, 1, 4]  # the reference, then a to d


def test_a_gallery_may_be_a_zip(tmp_path: Path) -> None:
    reference, target, other = _pictures(tmp_path, "a.png", "b.png", "c.png")
    with zipfile.ZipFile(tmp_path / "gallery.zip", "w") as archive:
        archive.write(other, "c.png")
    triplet = PictureTriplet(reference=reference, modifier="m", target=target)
    gallery = gather_gallery([triplet], [tmp_path / "gallery.zip"])
    assert gallery.paths == [target, tmp_path / "gallery.zip" / "c.png"]


def test_the_gallery_holds_each_picture_once(tmp_path: Path) -> None:
    a, b, c, d = _pictures(tmp_path / "p", "a.png", "b.jpg", "c.png", "d.webp")
    (tmp_path / "p" / "list.txt").write_text("no picture")
    (tmp_path / "link").symlink_to(tmp_path / "p", target_is_directory=True)
    asked = tmp_path / "link"  # the triplets go through a link, the gallery does not
    triplet = PictureTriplet(
        reference=asked / "a.png",
        modifier="",
        target=asked / "b.jpg",
        targets=(asked / "c.png",),
        excluded=(asked / "d.webp",),
    )
    found = gather_gallery([triplet], [tmp_path / "p"])
    assert [path.resolve() for path in found.paths] == [b, c, a, d]
    assert (found.answers, found.excluded) == ([[0, 1]], [[2, 3]])
    _pictures(tmp_path / "more", "e.png")
    assert len(gather_gallery([triplet], [tmp_path / "p", tmp_path / "more"]).paths) == 5
    alone = gather_gallery([triplet])
    assert [path.resolve() for path in alone.paths] == [a, b, c, d] and alone.excluded == [[0, 3]]
    sketch = replace(triplet, reference=_pictures(tmp_path / "sketches", "s.png")[0], excluded=())
    elsewhere = gather_gallery([sketch], [tmp_path / "p"])
    assert len(elsewhere.paths) == 4 and elsewhere.excluded == [[]]  # a query of another kind is no part of the gallery
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture below"):
        gather_gallery([triplet], [tmp_path / "empty"])
