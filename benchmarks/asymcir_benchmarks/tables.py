"""Evaluations as plain-text tables and as flat figures."""

from asymcir_benchmarks.evaluate import CUTS, METHODS, Evaluation


def format_recalls(evaluation: Evaluation) -> str:
    """Lay out R@1/5/10 of every method over all queries, then R@10 by family."""
    methods = [method for method in METHODS if method in evaluation.ranks]
    lines = [f"{'query':<16}" + "".join(f"{f'R@{k}':>8}" for k in CUTS) + f"   95% of R@{max(CUTS)}"]
    for method in methods:
        low, high = evaluation.interval(method, max(CUTS))
        recalls = "".join(f"{evaluation.recall(method, k):>8.3f}" for k in CUTS)
        lines.append(f"{method:<16}{recalls}   {low:.3f} to {high:.3f}")
    families = evaluation.families()
    if len(families) > 1:
        lines += ["", f"{'R@10 by family':<22}" + "".join(f"{method:>16}" for method in methods)]
        for family, count in families.items():
            recalls = "".join(f"{evaluation.recall(method, 10, family):>16.3f}" for method in methods)
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
