import json
from pathlib import Path

import pytest
from asymcir_benchmarks.emojicir.catalogue import Catalogue
from asymcir_benchmarks.emojicir.rows import read_rows
from asymcir_benchmarks.errors import BenchmarkError

ROWS = [
    {"id": "woman-noto", "concept": "woman", "name": "woman", "figure": "woman", "drawing": "a"},
    {"id": "woman-fluent", "concept": "woman", "name": "woman", "figure": "woman", "drawing": "b"},
    {"id": "dark-noto", "concept": "dark", "name": "woman: dark skin tone", "figure": "woman", "drawing": "c"},
    {"id": "person-noto", "concept": "person", "name": "person", "figure": "person", "drawing": "b"},
    {"id": "rocket", "name": "rocket", "figure": "rocket", "drawing": "d"},
]


def _write(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "gallery.jsonl"
    path.write_text("".join(json.dumps({"path": "x.webp", **row}) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_picture_of_the_concept_and_every_equal_drawing_answers(tmp_path: Path) -> None:
    catalogue = Catalogue.read(_write(tmp_path, ROWS))
    assert catalogue.answers("woman") == {"woman-noto", "woman-fluent", "person-noto"}
    assert catalogue.answers("person") == {"person-noto", "woman-fluent"}
    assert catalogue.answers("rocket") == {"rocket"}  # its id is its concept


def test_the_pictures_of_a_concept_are_its_own_alone(tmp_path: Path) -> None:
    catalogue = Catalogue.read(_write(tmp_path, ROWS))
    assert catalogue.pictures_of("woman") == {"woman-noto", "woman-fluent"}
    assert catalogue.pictures_of("nothing") == frozenset()
    assert "woman" in catalogue and "woman-noto" not in catalogue


def test_a_figure_is_every_skin_tone(tmp_path: Path) -> None:
    catalogue = Catalogue.read(_write(tmp_path, ROWS))
    assert catalogue.same_figure("dark") == {"woman-noto", "woman-fluent", "dark-noto"}
    assert catalogue.name("dark") == "woman: dark skin tone"


def test_what_the_gallery_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no picture of 'ghost'"):
        Catalogue.read(_write(tmp_path, ROWS)).answers("ghost")


@pytest.mark.parametrize("lacking", ["id", "name", "figure", "drawing"])
def test_a_row_without_a_field_is_named(tmp_path: Path, lacking: str) -> None:
    row = {key: value for key, value in ROWS[4].items() if key != lacking}
    with pytest.raises(BenchmarkError, match=rf"gallery.jsonl:2 lacks {lacking}"):
        Catalogue.read(_write(tmp_path, [ROWS[0], row]))


def test_files_that_hold_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(BenchmarkError, match="cannot read"):
        read_rows(path, ("slug",))
    for text, words in (
        ("", "no row"),
        ("{", "rows.jsonl:1 is not JSON"),
        ("[]", "lacks slug"),
        ('{"slug": 1}', "lacks slug"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BenchmarkError, match=words):
            read_rows(path, ("slug",))
