"""Evaluations as plain-text tables and as flat figures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from asymcir_benchmarks.emojicir.evaluate import CUTS, METHODS, Evaluation
from asymcir_benchmarks.emojicir.goals import PICTURE_CUTS, Goal, ModelCost, cost_goals, split_goals
from asymcir_benchmarks.emojicir.protocol import PRECISION_CUTS, SplitReport
from asymcir_benchmarks.retrieval.metrics import Estimate, bootstrap_interval, paired_difference
from asymcir_benchmarks.retrieval.ranking import Rankings

_SKETCH_FIGURES: Mapping[str, Callable[[Rankings], NDArray[np.float64]]] = {
    "R@10": lambda found: found.found(10),
    "mAP@all": lambda found: found.average_precisions(),
    **{f"P@{k}": (lambda found, k=k: found.precisions(k)) for k in PRECISION_CUTS},  # type: ignore[misc]
}
SKETCH_FIGURES = tuple(_SKETCH_FIGURES)
TARGET_FIGURES = ("composed, R@1", "composed, R@10", "sketches, mAP@all", "sketches, R@10")


def format_recalls(evaluation: Evaluation, family_cuts: Sequence[int] = (10,)) -> str:
    """Lay out R@1/5/10 of every method over all queries, then R@k by family for each of `family_cuts`."""
    methods = [method for method in METHODS if method in evaluation.ranks]
    lines = [f"{'query':<16}" + "".join(f"{f'R@{k}':>8}" for k in CUTS) + f"   95% of R@{max(CUTS)}"]
    for method in methods:
        low, high = evaluation.interval(method, max(CUTS))
        recalls = "".join(f"{evaluation.recall(method, k):>8.3f}" for k in CUTS)
        lines.append(f"{method:<16}{recalls}   {low:.3f} to {high:.3f}")
    families = evaluation.families()
    for k in family_cuts if len(families) > 1 else ():
        lines += ["", f"{f'R@{k} by family':<22}" + "".join(f"{method:>16}" for method in methods)]
        for family, count in families.items():
            recalls = "".join(f"{evaluation.recall(method, k, family):>16.3f}" for method in methods)
            lines.append(f"{f'{family} ({count})':<22}{recalls}")
    return "\n".join(lines)


def recall_figures(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """Flatten to figures: "PREFIX, METHOD, FAMILY, R@k" -> share ("low" and "high" for all), and "PREFIX of FAMILY"."""
    families = evaluation.families()
    figures: dict[str, float] = {f"{prefix} of {family}": count for family, count in families.items()}
    for method in evaluation.ranks:
        for family in (None, *families):
            for k in CUTS:
                key = f"{prefix}, {method}, {family or 'all'}, R@{k}"
                figures[key] = round(evaluation.recall(method, k, family), 6)
        low, high = evaluation.interval(method, max(CUTS))
        figures[f"{prefix}, {method}, all, R@{max(CUTS)} low"] = round(low, 6)
        figures[f"{prefix}, {method}, all, R@{max(CUTS)} high"] = round(high, 6)
    return figures


def emojicir_figures(reports: Mapping[str, SplitReport], cost: ModelCost | None) -> dict[str, float]:
    """Flatten a whole evaluation; the keys start with the split, or with "goals of SPLIT" or "goals of device".

    A figure without a value (a ratio over zero) is left out: JSON has no number for it.
    """
    figures: dict[str, float] = {}
    for split, report in reports.items():
        figures |= recall_figures(report.triplets, f"{split} triplets")
        if report.identity is not None:
            figures[f"{split} pictures"] = len(report.identity.triplets)
            for method in report.identity.ranks:
                for k in PICTURE_CUTS:
                    figures[f"{split} pictures, {method}, R@{k}"] = report.identity.recall(method, k)
        if report.sketches:
            figures[f"{split} sketches"] = len(next(iter(report.sketches.values())).ranks)
        for method, rankings in report.sketches.items():
            for name, values_of in _SKETCH_FIGURES.items():
                values = values_of(rankings)
                low, high = bootstrap_interval(values)
                estimate = Estimate(value=float(values.mean()), low=low, high=high)
                _put(figures, f"{split} sketches, {method}, {name}", estimate)
        for name, values_by_target in target_values(report).items():
            for target, values in values_by_target.items():
                figures[f"{split} targets, {target}, {name}"] = float(values.mean())
            for pair, difference in differences(values_by_target):
                _put(figures, f"{split} targets, {pair}, {name}", difference)
    for scope, goals in goals_by_scope(reports, cost).items():
        for goal in goals:
            _put_goal(figures, f"goals of {scope}, {goal.key}", goal)
    return {key: round(value, 6) for key, value in figures.items() if math.isfinite(value)}


def goals_by_scope(reports: Mapping[str, SplitReport], cost: ModelCost | None) -> dict[str, list[Goal]]:
    """Return split, and "device" for the model itself -> its goals."""
    goals = {split: split_goals(report) for split, report in reports.items()}
    return goals if cost is None else {**goals, "device": cost_goals(cost)}


def target_values(report: SplitReport) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return TARGET_FIGURES -> target type -> a value for each query; without sketches, the composed ones alone."""
    found = {
        f"composed, R@{k}": {target: it.hits("composed", k) for target, it in report.composed.items()} for k in (1, 10)
    }
    for name in ("mAP@all", "R@10") if report.sketch_targets else ():
        values_of = _SKETCH_FIGURES[name]
        found[f"sketches, {name}"] = {target: values_of(it) for target, it in report.sketch_targets.items()}
    return found


def differences(values: Mapping[str, NDArray[np.float64]]) -> Iterator[tuple[str, Estimate]]:
    """Yield "FIRST - OTHER" for every other target type, and what the first is ahead of it by, on the same queries."""
    first, *others = values
    for other in others:
        yield f"{first} - {other}", paired_difference(values[first], values[other])


def format_split(split: str, report: SplitReport) -> str:
    """Lay out everything measured on a split but its goals."""
    lines = [f"{split}: {len(report.triplets.triplets)} composed queries, every picture of the reference excluded"]
    lines += [format_recalls(report.triplets, (10, 1)), ""]
    if report.identity is not None:
        lines += [f"{split}: {len(report.identity.triplets)} query pictures that ask for their own concept"]
        lines += [f"{'query':<16}" + "".join(f"{f'R@{k}':>8}" for k in PICTURE_CUTS)]
        for method in report.identity.ranks:
            recalls = "".join(f"{report.identity.recall(method, k):>8.3f}" for k in PICTURE_CUTS)
            lines.append(f"{method:<16}{recalls}")
        lines.append("")
    if report.sketches:
        count = len(next(iter(report.sketches.values())).ranks)
        lines += [f"{split}: {count} sketches, every picture of the figure is relevant"]
        lines += [f"{'query':<26}" + "".join(f"{name:>9}" for name in SKETCH_FIGURES)]
        for method, rankings in report.sketches.items():
            values = "".join(f"{values_of(rankings).mean():>9.3f}" for values_of in _SKETCH_FIGURES.values())
            lines.append(f"{method:<26}{values}")
        lines.append("")
    targets = list(report.composed)
    lines += [f"{split}: target types", f"{'target':<20}" + "".join(f"{target:>10}" for target in targets)]
    for name, values_by_target in target_values(report).items():
        means = "".join(f"{values_by_target[target].mean():>10.3f}" for target in targets)
        gains = "".join(
            f"   {pair} {it.value:+.3f} ({it.low:+.3f} to {it.high:+.3f})" for pair, it in differences(values_by_target)
        )
        lines.append(f"{name:<20}{means}{gains}")
    return "\n".join(lines)


def format_goals(scope: str, goals: Sequence[Goal]) -> str:
    """Lay out goals, each with its target and whether it is reached."""
    lines = [f"{scope}: what we hold ourselves to"]
    for goal in goals:
        line = f"{goal.key:<58}{goal.value:>8.3f}"
        if goal.interval is not None:
            line += f" ({goal.interval[0]:.3f} to {goal.interval[1]:.3f})"
        if goal.bound is not None:
            line += f"   {goal.bound} {goal.target:g}: {'reached' if goal.reached else 'not reached'}"
        lines.append(line)
    return "\n".join(lines)


def _put(figures: dict[str, float], key: str, estimate: Estimate) -> None:
    figures |= {key: estimate.value, f"{key} low": estimate.low, f"{key} high": estimate.high}


def _put_goal(figures: dict[str, float], key: str, goal: Goal) -> None:
    figures[key] = goal.value
    if goal.interval is not None:
        figures[f"{key} low"], figures[f"{key} high"] = goal.interval
    if goal.bound is not None:
        figures[f"{key}, {goal.bound}"] = goal.target
        figures[f"{key}, reached"] = float(bool(goal.reached))
