import json
from pathlib import Path

import pytest
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.pages.fill import RESULTS, fill
from asymcir_benchmarks.pages.summary_table import SUMMARY_RESULTS

ROOT = Path(__file__).parents[3]
BLOCK = "<!-- figures summary -->\n<!-- end -->"


def test_each_figure_stands_beside_its_alternative() -> None:
    records = {name: json.loads((ROOT / RESULTS / name).read_text(encoding="utf-8")) for name in SUMMARY_RESULTS}
    page = fill(BLOCK, ROOT / RESULTS)
    figures = records["emojicir.json"]["figures"]
    ours, other = (figures[f"test triplets, {method}, all, R@10"] for method in ("composed", "picture + text"))
    row = next(line for line in page.splitlines() if "first 10" in line)
    assert f"{ours:.3f} (" in row and f"{other:.3f} (" in row
    assert f"{records['demo.json']['figures']['query on the wire, bytes']:,.0f} bytes" in page
    assert all(record["date"] in page and record["machine"] in page for record in records.values())


def test_a_missing_result_or_figure_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"cannot read .*demo\.json"):
        fill(BLOCK, tmp_path)
    for name in SUMMARY_RESULTS:
        record = json.loads((ROOT / RESULTS / name).read_text(encoding="utf-8"))
        if name == "device.json":
            record["figures"] = {}
        (tmp_path / name).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"device\.json.*measure again"):
        fill(BLOCK, tmp_path)
