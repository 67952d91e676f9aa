"""The figures that we hold ourselves to, and whether they are reached."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from asymcir_edge import DeviceBundle

from asymcir_benchmarks.emojicir.evaluate import Evaluation
from asymcir_benchmarks.emojicir.protocol import SKETCH_METHODS, SplitReport
from asymcir_benchmarks.retrieval.metrics import Estimate, paired_difference, paired_ratio, ratio
from asymcir_benchmarks.retrieval.ranking import Rankings

MIN_MEAN_GAIN = 0.10
"""Composed less picture + text, R@10, mean over families; and above zero in each."""

MIN_FIRST_RATIO = 2.0
"""Composed over picture + text, R@1, means over families."""

MIN_NAME_RATIO = 0.75
"""Composed over the target's own name, R@10, means over families: how near a perfect description."""

MIN_PICTURE_RATIO = 0.90
"""Tokens over the large tower, picture to picture."""

MIN_SKETCH_RATIO = 0.80
"""Tokens of line art over tokens of the same drawing in colour, R@10."""

MAX_PARAMETERS = 6e6
MAX_MACS = 0.5e9
"""Of the device model, at its input size."""

PICTURE_CUTS = (1, 10)

Bound = Literal["above", "at least", "at most"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """Size and cost of the device model, as its export counted them.

    Attributes:
        parameters: weights of the network.
        macs: multiply-accumulates of its convolutions and matrix products for one picture.
    """

    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One figure, and what it should be.

    Attributes:
        key: names it, with its unit.
        value: measured; NaN where nothing was there to measure.
        bound, target: "at least" 0.75, say; None for a figure that only stands beside the others.
        interval: 95%, by resampling queries; None where there is none.
    """

    key: str
    value: float
    bound: Bound | None = None
    target: float = 0.0
    interval: tuple[float, float] | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the value is what it should be, which NaN never is; None without a target."""
        if self.bound is None:
            return None
        if self.bound == "above":
            return self.value > self.target
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


def composed_goals(evaluation: Evaluation) -> list[Goal]:
    """Compare the composed query with picture + text and with the target's name."""
    families = evaluation.families()
    gains = {
        family: evaluation.recall("composed", 10, family) - evaluation.recall("picture + text", 10, family)
        for family in families
    }
    pair = "composed - picture + text, R@10"
    overall = paired_difference(evaluation.hits("composed", 10), evaluation.hits("picture + text", 10))
    first = ratio(evaluation.mean_recall("composed", 1), evaluation.mean_recall("picture + text", 1))
    name = ratio(evaluation.mean_recall("composed", 10), evaluation.mean_recall("target's name", 10))
    return [
        *(Goal(key=f"{pair}, {family}", value=gain, bound="above") for family, gain in gains.items()),
        Goal(
            key=f"{pair}, mean of families",
            value=sum(gains.values()) / len(gains),
            bound="at least",
            target=MIN_MEAN_GAIN,
        ),
        Goal(key=f"{pair}, all queries", value=overall.value, interval=(overall.low, overall.high)),
        Goal(
            key="composed / picture + text, R@1, means of families",
            value=first,
            bound="at least",
            target=MIN_FIRST_RATIO,
        ),
        Goal(
            key="composed / target's name, R@10, means of families", value=name, bound="at least", target=MIN_NAME_RATIO
        ),
    ]


def picture_goals(identity: Evaluation) -> list[Goal]:
    """Compare the device's tokens with the large tower on pictures that ask for themselves."""
    return [
        _ratio_goal(
            f"tokens / large tower, picture to picture, R@{k}",
            paired_ratio(identity.hits("tokens only", k), identity.hits("picture only", k)),
            MIN_PICTURE_RATIO,
        )
        for k in PICTURE_CUTS
    ]


def sketch_goals(sketches: Mapping[str, Rankings]) -> list[Goal]:
    """Compare line art with the same drawings in colour, both as tokens."""
    line, _, colour, _ = SKETCH_METHODS
    found = paired_ratio(sketches[line].found(10), sketches[colour].found(10))
    return [_ratio_goal(f"sketches, {line} / {colour}, R@10", found, MIN_SKETCH_RATIO)]


def split_goals(report: SplitReport) -> list[Goal]:
    """Gather what a split is held to; parts that it does not have are left out."""
    goals = composed_goals(report.triplets)
    if report.identity is not None:
        goals += picture_goals(report.identity)
    if report.sketches:
        goals += sketch_goals(report.sketches)
    return goals


def read_cost(bundle: DeviceBundle) -> ModelCost | None:
    """Return what a device bundle's manifest says of its network's cost; None where its export could not count it."""
    found = bundle.manifest.properties
    if "parameters" not in found or "macs" not in found:
        _LOG.warning("the manifest of %s names no parameters and macs: goals of device are left out", bundle.folder)
        return None
    return ModelCost(parameters=int(found["parameters"]), macs=int(found["macs"]))


def cost_goals(cost: ModelCost) -> list[Goal]:
    """Hold the device model to its size and cost."""
    return [
        Goal(key="parameters, M", value=cost.parameters / 1e6, bound="at most", target=MAX_PARAMETERS / 1e6),
        Goal(key="compute, GMACs", value=cost.macs / 1e9, bound="at most", target=MAX_MACS / 1e9),
    ]


def _ratio_goal(key: str, found: Estimate, target: float) -> Goal:
    return Goal(key=key, value=found.value, bound="at least", target=target, interval=(found.low, found.high))
