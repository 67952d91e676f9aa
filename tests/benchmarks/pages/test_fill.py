import json
from pathlib import Path

import numpy as np
import pytest
from asymcir_benchmarks import Triplet
from asymcir_benchmarks.emojicir.evaluate import METHODS, Evaluation
from asymcir_benchmarks.emojicir.goals import ModelCost
from asymcir_benchmarks.emojicir.protocol import SKETCH_METHODS, TARGETS, SplitReport
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.pages import fill as docs
from asymcir_benchmarks.pages.emojicir_tables import emojicir_figures, format_goals, format_split, goals_by_scope
from asymcir_benchmarks.results import write_result
from asymcir_benchmarks.retrieval.ranking import Rankings

ROOT = Path(__file__).parents[3]
COST = ModelCost(parameters=4_500_000, macs=600_000_000)


def _report() -> SplitReport:
    rng = np.random.default_rng(0)
    triplets = [Triplet(reference="a", modifier="is b", target="b", family=family) for family in ("hair", "clock") * 10]
    evaluation = Evaluation(
        triplets=triplets, ranks={method: rng.integers(1, 15, size=20, dtype=np.int64) for method in METHODS}
    )
    evaluation.ranks["composed"][:] = [1, 11] * 10  # hair always first, clock never
    rankings = {method: Rankings(ranks=[rng.integers(1, 15, size=3) for _ in range(8)]) for method in SKETCH_METHODS}
    identity = Evaluation(
        triplets=triplets[:4],
        ranks={"tokens only": np.array([1, 1, 5, 11]), "picture only": np.array([1, 1, 5, 6])},
    )
    return SplitReport(
        triplets=evaluation,
        composed=dict.fromkeys(TARGETS, evaluation),
        identity=identity,
        sketches=rankings,
        sketch_targets=dict.fromkeys(TARGETS, rankings[SKETCH_METHODS[0]]),
    )


def _table(results: Path, name: str) -> list[list[str]]:
    text = docs.fill(f"<!-- figures {name} -->\n<!-- end -->", results)
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    figures = emojicir_figures({"test": _report(), "novel": _report()}, COST)
    write_result(tmp_path / "emojicir.json", figures=figures, command="asymcir eval emojicir")
    return tmp_path


def test_every_number_in_the_pages_is_the_one_in_the_results() -> None:
    assert docs.main(["--check", "--root", str(ROOT)]) == 0


def test_a_typed_number_is_noticed() -> None:
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    start = text.index("<!-- figures emojicir-test -->")
    changed = text[:start] + text[start:].replace("0.", "1.", 1)
    assert changed != text and docs.fill(changed, ROOT / docs.RESULTS) == text


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="no table 'nothing'"):
        docs.fill("<!-- figures nothing -->\n<!-- end -->", ROOT / docs.RESULTS)


@pytest.mark.parametrize("split", ["test", "novel"])
def test_the_composed_tables_of_a_split(results: Path, split: str) -> None:
    head, _, composed, *others = _table(results, f"emojicir-{split}")
    assert head == ["query", "R@1", "R@5", "R@10", "95% of R@10"] and composed[:4] == ["composed", *["0.500"] * 3]
    assert [row[0] for row in others] == list(METHODS[1:])
    head, _, *families = _table(results, f"emojicir-{split}-families")
    assert head[0] == "R@10 / R@1 by family" and head[1:] == list(METHODS)
    assert [row[:2] for row in families] == [["hair (10)", "1.000 / 1.000"], ["clock (10)", "0.000 / 0.000"]]


def test_the_table_of_goals_says_what_is_not_reached(results: Path) -> None:
    head, _, *rows = _table(results, "emojicir-goals")
    assert head == ["figure", "of", "value", "95%", "target", "reached"]
    found = {(row[1], row[0]): row[2:] for row in rows}
    assert found["device", "parameters, M"] == ["4.500", "-", "at most 6", "yes"]
    assert found["device", "compute, GMACs"] == ["0.600", "-", "at most 0.5", "**no**"]
    value, interval, target, reached = found["novel", "tokens / large tower, picture to picture, R@10"]
    assert (value, target, reached) == ("0.750", "at least 0.9", "**no**") and " to " in interval
    assert found["test", "tokens / large tower, picture to picture, R@1"][3] == "yes"
    assert found["test", "composed - picture + text, R@10, clock"][2:] == ["above 0", "**no**"]
    assert found["test", "composed - picture + text, R@10, all queries"][2:] == ["-", "-"]
    assert len(rows) == 2 * (2 + 4 + 2 + 1) + 2


def test_the_tables_of_sketches_and_target_types(results: Path) -> None:
    figures = json.loads((results / "emojicir.json").read_text(encoding="utf-8"))["figures"]
    head, _, *rows = _table(results, "emojicir-sketches")
    assert head == ["query", "of", "R@10", "mAP@all", "P@1", "P@5", "P@10"] and len(rows) == 2 * len(SKETCH_METHODS)
    assert rows[0][:2] == [SKETCH_METHODS[0], "test (8)"]
    assert rows[0][3] == f"{figures[f'test sketches, {SKETCH_METHODS[0]}, mAP@all']:.3f}"
    _, _, *rows = _table(results, "emojicir-targets")
    assert [row[0] for row in rows[:5]] == ["union", "original", "sum", "union - original", "union - sum"]
    assert rows[0][2:4] == ["0.500", "0.500"] and rows[3][2] == "+0.000 (+0.000 to +0.000)"


def test_a_ratio_over_zero_is_a_dash_and_not_a_number_in_the_file(tmp_path: Path) -> None:
    report = _report()
    report.triplets.ranks["picture + text"][:] = 9  # never first
    figures = emojicir_figures({"test": report}, COST)
    key = "goals of test, composed / picture + text, R@1, means of families"
    assert key not in figures and figures[f"{key}, reached"] == 1.0
    write_result(tmp_path / "emojicir.json", figures=figures)
    assert ["composed / picture + text, R@1, means of families", "test", "-", "-", "at least 2", "yes"] in _table(
        tmp_path, "emojicir-goals"
    )


def test_results_that_lack_a_table_are_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot read"):
        _table(tmp_path / "nowhere", "emojicir-goals")
    figures = emojicir_figures({"test": _report()}, COST)
    write_result(results / "emojicir.json", figures=figures)
    with pytest.raises(BenchmarkError, match=r"'novel triplets, composed, all, R@1'.*measure again"):
        _table(results, "emojicir-novel")


def test_the_plain_text_says_the_same() -> None:
    reports = {"test": _report()}
    text = format_split("test", reports["test"])
    assert all(word in text for word in (*METHODS, *SKETCH_METHODS, *TARGETS, "R@10 by family", "R@1 by family"))
    goals = goals_by_scope(reports, COST)
    lines = [line for scope, found in goals.items() for line in format_goals(scope, found).splitlines()]
    assert sum(line.endswith(("reached", "not reached")) for line in lines) == sum(
        goal.reached is not None for found in goals.values() for goal in found
    )
    assert any("compute, GMACs" in line and line.endswith("not reached") for line in lines)
    assert any("parameters, M" in line and line.endswith(": reached") for line in lines)


def test_a_split_without_sketches_or_pictures_leaves_their_figures_out() -> None:
    full = _report()
    bare = SplitReport(triplets=full.triplets, composed=full.composed, identity=None, sketches={}, sketch_targets={})
    figures = emojicir_figures({"dev": bare}, COST)
    assert not [key for key in figures if "sketches" in key or "dev pictures" in key]
    assert "dev targets, union - sum, composed, R@10" in figures and "sketches" not in format_split("dev", bare)
