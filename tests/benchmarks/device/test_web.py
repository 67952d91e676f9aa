import json
from pathlib import Path

import pytest
from asymcir_benchmarks.device.web import Browser, _spread
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.pages.device_tables import WEB_GOALS, lay_out_web

RESULT = Path(__file__).parents[3] / "benchmarks" / "results" / "web.json"


def test_the_spread_has_median_and_p95_with_the_unit() -> None:
    found = _spread("a query", [float(value) for value in range(1, 102)], "ms")
    assert found == {"a query, ms": 51.0, "a query, p95, ms": 96.0}


@pytest.mark.parametrize(("value", "reached"), [(2.4, "yes"), (2.6, "**no**")])
def test_the_table_says_which_goals_are_reached(value: float, reached: str) -> None:
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    key, bound, target = WEB_GOALS[0]
    assert (bound, target) == ("at most", 2.5)
    record["figures"][key] = value
    (line,) = (line for line in lay_out_web(record).splitlines() if line.startswith(f"| {key} |"))
    assert line == f"| {key} | {value:g} | at most 2.5 | {reached} |"


def test_a_driver_that_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\nexit 3\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    browser = Browser({})
    with pytest.raises(BenchmarkError, match="driver ended"):
        browser.ask(do="visit")
    browser.close()
