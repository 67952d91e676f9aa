"""Parquet files: with pictures in them, with paths, with metadata; and damaged ones."""

import concurrent.futures
import datetime
import json
import multiprocessing
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asymcir_common import ImageError, PlaceError
from asymcir_common.places import Rejected, open_places
from asymcir_server.gallery import open_source
from asymcir_server.gallery.sources import Entry


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def read_all(path: Path) -> dict[str, bytes]:
    return {item.id: item.read() for item in open_source(path) if isinstance(item, Entry)}


@pytest.mark.parametrize("form", ["struct", "bytes", "flat"])
@pytest.mark.parametrize("group", [1, 3, 1000])
def test_pictures_in_the_file(tmp_path: Path, form: str, group: int) -> None:
    data = [b"picture %d" % number * 40 for number in range(70)]
    columns: dict[str, Any] = {
        "struct": {"image": [{"bytes": item, "path": None} for item in data]},
        "bytes": {"image": data},
        "flat": {"image.bytes": data},
    }[form]
    path = write(tmp_path / "train.parquet", {**columns, "label": list(range(70))}, row_group_size=group)
    entries = [item for item in open_source(path) if isinstance(item, Entry)]
    assert [entry.id for entry in entries] == [f"train.parquet/{number}" for number in range(70)]
    assert [entry.metadata for entry in entries] == [{"label": number} for number in range(70)]
    assert [entry.read() for entry in entries] == data
    assert [entry.read() for entry in reversed(entries)] == data[::-1]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda entry: entry.read(), entries)) == data


def test_paths_ids_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "p" / f"{name}.png").write_bytes(name.encode())
    path = write(
        tmp_path / "list.parquet",
        {
            "path": ["p/a.png", "p/b.png", "p/c.png", None],
            "id": [1, 2, None, 4],
            "when": [datetime.date(2024, 5, 1), None, None, None],
            "price": [Decimal("9.50"), None, None, None],
            "size": [1.5, float("nan"), None, 2.0],
            "tags": [["x", "y"], [], None, None],
            "raw": [b"\xff", b"", None, None],
            "captions": [["a red mug"], None, None, None],
        },
    )
    entries = [item for item in open_source(path) if isinstance(item, Entry)]
    assert [entry.id for entry in entries] == ["1", "2", "p/c.png", "4"]
    first = {"when": "2024-05-01", "price": "9.50", "size": 1.5, "tags": ["x", "y"], "captions": ["a red mug"]}
    assert [entry.metadata for entry in entries] == [first, {"tags": []}, {}, {"size": 2.0}]
    assert [entry.read() for entry in entries[:3]] == [b"a", b"b", b"c"]
    with pytest.raises(ImageError, match="column path is empty"):
        entries[3].read()


def test_several_files_and_pictures_that_a_struct_only_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    for number in range(2):
        cells = [{"bytes": b"x%d" % number, "path": "x.png"}, {"bytes": None, "path": "a.png"}]
        write(tmp_path / f"{number}.parquet", {"image": cells})
    found = {item.id: item.read() for item in open_source(str(tmp_path / "{0,1}.parquet")) if isinstance(item, Entry)}
    assert found == {
        "0.parquet/x.png": b"x0", "0.parquet/a.png": b"a", "1.parquet/x.png": b"x1", "1.parquet/a.png": b"a",
    }  # fmt: skip


def test_ids_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"] * 3, "id": ["", "y" * 2000, "z"]})
    items = list(open_source(path))
    assert [item.id for item in items] == ["a.parquet/0", "a.parquet/1", "z"]
    assert [isinstance(item, Rejected) for item in items] == [True, True, False]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no Parquet file")
    whole = write(tmp_path / "whole.parquet", {"image": [b"x" * 1000]}).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    write(tmp_path / "other.parquet", {"name": ["x"]})
    for name, reason in (
        ("text", "cannot read the Parquet"),
        ("cut", "cannot read the Parquet"),
        ("other", "no column"),
    ):
        with pytest.raises(PlaceError, match=reason) as caught:
            open_places(tmp_path / f"{name}.parquet")
        assert "\n" not in str(caught.value)


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    columns = {"image": [bytes([number]) * 500 for number in range(6)]}
    path = write(tmp_path / "a.parquet", columns, row_group_size=2, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 12] = b"\xff" * 12
    path.write_bytes(data)
    entries = [item for item in open_source(path) if isinstance(item, Entry)]
    good = []
    for number, entry in enumerate(entries):
        try:
            assert entry.read() == columns["image"][number]
            good.append(number)
        except ImageError as exc:
            assert "cannot read" in str(exc) and "\n" not in str(exc)
    assert good == [0, 1, 4, 5]


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymcir_common.places.parquet.MAX_FILE_BYTES", 2**20)
    cells = [bytes(2**20 + 1), b"small"]
    path = write(tmp_path / "a.parquet", {"image": cells}, compression="zstd", use_dictionary=False, row_group_size=1)
    first, second = (item for item in open_source(path) if isinstance(item, Entry))
    with pytest.raises(ImageError, match="unpack to more than 1 MiB"):
        first.read()
    assert second.read() == b"small"
    path = write(tmp_path / "b.parquet", {"image": cells}, compression="zstd")
    first, second = (item for item in open_source(path) if isinstance(item, Entry))
    with pytest.raises(ImageError, match="above 1 MiB"):
        first.read()
    assert second.read() == b"small"


@pytest.mark.parametrize("dictionary", [True, False])
def test_memory_of_one_large_row_group(tmp_path: Path, dictionary: bool) -> None:
    cell = bytes(range(256)) * 4096  # 1 MiB; 512 rows of it in one row group
    path = write(tmp_path / "a.parquet", {"image": [cell] * 512}, use_dictionary=dictionary, compression="zstd")
    code = (
        "import resource, sys; from pathlib import Path; from asymcir_common.places import open_places\n"
        "places = open_places(Path(sys.argv[1])); places.read(0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(len(places.read(number)) for number in range(512)) == 512 << 20\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert float(done.stdout) < 350


def test_a_place_goes_to_other_processes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"%d" % number for number in range(40)]})
    places = open_places(path)
    assert places.read(5) == b"5"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(places.read, [3, 39]) == [b"3", b"39"]


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"]})
    code = (
        "import sys; sys.modules['pyarrow'] = None; from pathlib import Path\n"
        "from asymcir_common.places import open_places\n"
        f"try: open_places(Path({json.dumps(str(path))}))\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("PlaceError") and "pip install" in done.stdout and "[parquet]'" in done.stdout
