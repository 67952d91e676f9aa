from pathlib import Path

import pytest
from asymcir_benchmarks import docs
from asymcir_benchmarks.errors import BenchmarkError

ROOT = Path(__file__).parents[2]


def test_every_number_in_the_pages_is_the_one_in_the_results() -> None:
    assert docs.main(["--check", "--root", str(ROOT)]) == 0


def test_a_typed_number_is_noticed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("<!-- figures composed -->")
    changed = text[:start] + text[start:].replace("0.", "1.", 1)
    assert changed != text and docs.fill(changed, ROOT / docs.RESULTS) == text


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="no table 'nothing'"):
        docs.fill("<!-- figures nothing -->\n<!-- end -->", ROOT / docs.RESULTS)
