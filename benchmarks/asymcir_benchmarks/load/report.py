"""What a server answered under load: counts, percentiles, a histogram of logarithmic buckets, a picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asymcir_benchmarks.errors import BenchmarkError

ANSWERED = "OK"
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
BUCKETS_PER_DOUBLING = 8
"""Of the histogram: a bucket is 9% wide."""

_LEAST_MS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        status: "OK", or the name of a gRPC status code.
        latency_ms: from the moment at which it was to be sent, however late the generator was, to its end.
        lateness_ms: from that moment to when it was sent.
    """

    status: str
    latency_ms: float
    lateness_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """One run of the generator.

    Attributes:
        rate_per_s: at which requests were to arrive.
        duration_s: in which they were to arrive.
        outcomes: one for each request.
        response_bytes: of the first answer, 0 where there was none.
    """

    rate_per_s: float
    duration_s: float
    outcomes: Sequence[Outcome]
    response_bytes: int = 0

    @property
    def counts(self) -> Mapping[str, int]:
        """Status -> how many requests ended with it."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def goodput_per_s(self) -> float:
        """Answers a second."""
        return self.counts.get(ANSWERED, 0) / self.duration_s

    def latencies_ms(self, status: str = ANSWERED) -> NDArray[np.float64]:
        """Return the latencies of the requests that ended with a status: [n]."""
        return np.array([one.latency_ms for one in self.outcomes if one.status == status], np.float64)

    def figures(self) -> dict[str, float]:
        """Return flat figures with their units."""
        sent = len(self.outcomes)
        found: dict[str, float] = {
            "offered, requests/s": sent / self.duration_s,
            "answered, requests/s": self.goodput_per_s,
            "requests": float(sent),
        }
        for status, count in sorted(self.counts.items()):
            found[f"{status}, requests"] = float(count)
            values = self.latencies_ms(status)
            found |= {f"{status}, p{percent:g}, ms": float(np.percentile(values, percent)) for percent in PERCENTILES}
            found[f"{status}, longest, ms"] = float(values.max())
        late = np.array([one.lateness_ms for one in self.outcomes])
        found["sent late, p99, ms"] = float(np.percentile(late, 99.0)) if sent else 0.0
        return {name: round(value, 3) for name, value in found.items()}


def bucket_latencies(values_ms: NDArray[np.float64]) -> list[tuple[float, float, int]]:
    """Count latencies in buckets whose width grows with the latency.

    Args:
        values_ms: [n], not negative.

    Returns:
        From, to (milliseconds) and count of each bucket, from the first that holds a value to the last.
    """
    if not len(values_ms):
        return []
    places = np.floor(np.log2(np.maximum(values_ms, _LEAST_MS) / _LEAST_MS) * BUCKETS_PER_DOUBLING).astype(int)
    counts = np.bincount(places)
    edges = _LEAST_MS * 2.0 ** (np.arange(len(counts) + 1) / BUCKETS_PER_DOUBLING)
    first = int(np.flatnonzero(counts)[0])
    return [(float(edges[n]), float(edges[n + 1]), int(counts[n])) for n in range(first, len(counts))]


def draw_latencies(reports: Mapping[str, LoadReport], path: Path) -> None:
    """Draw the latencies of answers: a histogram, and the latency that each share of the requests stays below.

    Args:
        reports: name -> run; those without an answer are left out.
        path: an .svg or .png file.

    Raises:
        BenchmarkError: another kind of file.
        ImportError: matplotlib is not installed.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise BenchmarkError(f"expected a picture named .svg or .png, got {path}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    counts, tail = figure.subplots(1, 2)
    for name, report in reports.items():
        values = np.sort(report.latencies_ms())
        if not len(values):
            continue
        buckets = bucket_latencies(values)
        counts.stairs([count for _, _, count in buckets], [buckets[0][0], *(end for _, end, _ in buckets)], label=name)
        behind = len(values) / (len(values) - np.arange(len(values)))  # 2: half of the answers take longer
        tail.plot(behind, values, label=name)
    counts.set(xscale="log", xlabel="latency, ms", ylabel="answers")
    tail.set(xscale="log", yscale="log", xlabel="share of the answers", ylabel="latency, ms")
    marks = [2.0, 10.0, 100.0, 1000.0, 10_000.0]
    most = max([2.0, *(len(report.latencies_ms()) for report in reports.values())])
    shown = [mark for mark in marks if mark <= most]
    tail.set_xticks(shown, [f"{100.0 * (1.0 - 1.0 / mark):g}%" for mark in shown])
    for axes in (counts, tail):
        axes.grid(alpha=0.3)
    tail.legend()
    figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)
