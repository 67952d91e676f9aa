import json
from pathlib import Path

import pytest
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.pages import fill as docs
from asymcir_benchmarks.results import write_result

FIGURES = {
    "steps": 120.0,
    "GCD, seeds": 3.0,
    "GCD, composed, R@10": 0.25,
    "GCD, composed, R@10, standard deviation": 0.0126,
    "GCD, composed, R@1": 0.125,
    "GCD, tokens to its own concept, R@10": 0.75,
    "GCD + LAR, seeds": 1.0,
    "GCD + LAR, composed, R@10": 0.5,
    "GCD + LAR, composed, R@1": 0.375,
    "GCD + LAR, tokens to its own concept, R@10": 0.875,
    "baseline, picture only, R@10": 0.1,
    "baseline, picture only, R@1": 0.05,
    "baseline, picture to its own concept, R@10": 0.9,
    "baseline, picture + text, R@10": 0.2,
}


def test_the_ablation_has_a_row_for_each_variant_and_each_baseline(tmp_path: Path) -> None:
    write_result(tmp_path / "ablation.json", figures=FIGURES, command="ablate")
    text = docs.fill("<!-- figures ablation -->\n<!-- end -->", tmp_path)
    assert [line for line in text.splitlines() if line.startswith("| ")][2:] == [
        "| GCD | 3 | 0.250 ± 0.013 | 0.125 | 0.750 |",
        "| GCD + LAR | 1 | 0.500 | 0.375 | 0.875 |",
        "| baseline: picture only | - | 0.100 | 0.050 | 0.900 |",
        "| baseline: picture + text | - | 0.200 | - | - |",
    ]


def test_an_ablation_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text(json.dumps({"figures": {"steps": 1.0}}), encoding="utf-8")
    with pytest.raises(BenchmarkError, match="lacks 'ROW, seeds'"):
        docs.fill("<!-- figures ablation -->\n<!-- end -->", tmp_path)


def test_optional_pages_are_checked_where_they_are(tmp_path: Path) -> None:
    for page in docs.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text("no table\n", encoding="utf-8")
    assert docs.main(["--check", "--root", str(tmp_path)]) == 0
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "RESULTS.md").write_text("<!-- figures ablation -->\nold\n<!-- end -->\n", "utf-8")
    write_result(tmp_path / docs.RESULTS / "ablation.json", figures=FIGURES, command="ablate")
    assert docs.main(["--check", "--root", str(tmp_path)]) == 1
    assert docs.main(["--root", str(tmp_path)]) == 0
    assert docs.main(["--check", "--root", str(tmp_path)]) == 0
