import json
import math
from pathlib import Path

import numpy as np
import pytest
from asymcir_benchmarks import Triplet
from asymcir_benchmarks.emojicir.evaluate import Evaluation
from asymcir_benchmarks.emojicir.goals import (
    Bound,
    Goal,
    ModelCost,
    composed_goals,
    cost_goals,
    picture_goals,
    read_cost,
    sketch_goals,
)
from asymcir_benchmarks.emojicir.protocol import SKETCH_METHODS
from asymcir_benchmarks.retrieval.metrics import NOT_FOUND
from asymcir_benchmarks.retrieval.ranking import Rankings
from asymcir_edge import DeviceBundle
from tiny_device_bundle import write_device_bundle


def evaluate(families: dict[str, dict[str, list[int]]]) -> Evaluation:
    """Family -> method -> ranks, 0 for not found."""
    triplets = [
        Triplet(reference="a", modifier="is b", target="b", family=family)
        for family, methods in families.items()
        for _ in next(iter(methods.values()))
    ]
    names = next(iter(families.values()))
    ranks = {
        name: np.array([rank or NOT_FOUND for methods in families.values() for rank in methods[name]]) for name in names
    }
    return Evaluation(triplets=triplets, ranks=ranks)


TWO_FAMILIES = {
    "hair": {"composed": [1, 1, 3, 9], "picture + text": [1, 3, 0, 0], "target's name": [1, 1, 1, 1]},
    "clock": {"composed": [1, 0], "picture + text": [0, 7], "target's name": [2, 1]},
}


@pytest.mark.parametrize(
    ("bound", "value", "reached"),
    [
        ("above", 0.0, False),
        ("above", 1e-9, True),
        ("at least", 0.5, True),
        ("at least", 0.4999, False),
        ("at most", 0.5, True),
        ("at most", 0.5001, False),
        ("at least", math.inf, True),
        ("at least", math.nan, False),
        ("at most", math.nan, False),
        (None, 1.0, None),
    ],
)
def test_reached_or_not(bound: Bound | None, value: float, reached: bool | None) -> None:
    target = 0.0 if bound == "above" else 0.5
    assert Goal(key="x", value=value, bound=bound, target=target).reached is reached


def test_families_weigh_the_same_however_many_queries_they_have() -> None:
    goals = {goal.key: goal for goal in composed_goals(evaluate(TWO_FAMILIES))}
    pair = "composed - picture + text, R@10"
    assert goals[f"{pair}, hair"].value == pytest.approx(0.5) and goals[f"{pair}, hair"].reached
    assert goals[f"{pair}, clock"].value == pytest.approx(0.0) and not goals[f"{pair}, clock"].reached
    assert goals[f"{pair}, mean of families"].value == pytest.approx(0.25)
    assert goals[f"{pair}, all queries"].value == pytest.approx(5 / 6 - 3 / 6)
    assert goals[f"{pair}, all queries"].reached is None and goals[f"{pair}, all queries"].interval is not None
    first = goals["composed / picture + text, R@1, means of families"]
    assert first.value == pytest.approx((0.5 + 0.5) / (0.25 + 0.0)) and first.reached
    name = goals["composed / target's name, R@10, means of families"]
    assert name.value == pytest.approx((1.0 + 0.5) / 2.0) and name.reached


def test_a_composed_query_that_loses_reaches_nothing() -> None:
    worse = {
        family: methods | {"composed": methods["picture + text"], "picture + text": methods["composed"]}
        for family, methods in TWO_FAMILIES.items()
    }
    assert not any(goal.reached for goal in composed_goals(evaluate(worse)))


def test_pictures_and_sketches_are_ratios() -> None:
    identity = evaluate({"picture": {"tokens only": [1, 2, 4, 0], "picture only": [1, 1, 9, 4]}})
    first, tenth = picture_goals(identity)
    assert first.value == 0.5 and tenth.value == 0.75 and not first.reached and not tenth.reached
    places = [np.array([1, 30]), np.array([10]), np.array([11]), np.array([2])]
    rankings = {method: Rankings(ranks=places) for method in SKETCH_METHODS}
    rankings[SKETCH_METHODS[0]] = Rankings(ranks=[*places[:3], np.array([12])])
    (goal,) = sketch_goals(rankings)
    assert goal.value == pytest.approx(2 / 3) and not goal.reached
    (equal,) = sketch_goals({**rankings, SKETCH_METHODS[0]: rankings[SKETCH_METHODS[2]]})
    assert equal.value == 1.0 and equal.reached


def test_the_device_model_is_held_to_its_cost() -> None:
    assert [goal.reached for goal in cost_goals(ModelCost(parameters=6_000_000, macs=500_000_000))] == [True, True]
    assert [goal.reached for goal in cost_goals(ModelCost(parameters=6_000_001, macs=500_000_001))] == [False, False]


def test_the_cost_is_what_the_manifest_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = write_device_bundle(tmp_path / "known", parameters=4_500_000, macs=137_000_000)
    assert read_cost(DeviceBundle.load(known)) == ModelCost(parameters=4_500_000, macs=137_000_000)
    assert not caplog.records
    assert read_cost(DeviceBundle.load(write_device_bundle(tmp_path / "unknown"))) is None
    assert "names no parameters and macs" in caplog.text


def test_the_committed_bundle_says_what_was_published() -> None:
    root = Path(__file__).parents[3]
    cost = read_cost(DeviceBundle.load(root / "demo" / "assets" / "device"))
    figures = json.loads((root / "benchmarks" / "results" / "emojicir.json").read_text(encoding="utf-8"))["figures"]
    assert cost is not None
    assert {goal.key: round(goal.value, 6) for goal in cost_goals(cost)} == {
        key: figures[f"goals of device, {key}"] for key in ("parameters, M", "compute, GMACs")
    }
