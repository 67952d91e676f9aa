"""What a self-test found: per picture, per encoder, and for the whole bundle on one machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from asymcir_edge.device.golden import Thresholds
from asymcir_edge.device.machine import Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureVerdict:
    """One golden picture through one encoder.

    Attributes:
        picture: its file's name.
        cosine_min, cosine_mean: of its L tokens with the golden ones; None where there are no tokens to compare.
        max_abs_difference: the largest of any value.
        problem: why it did not pass; empty where it did.
    """

    picture: str
    cosine_min: float | None = None
    cosine_mean: float | None = None
    max_abs_difference: float | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Encoding one decoded picture, after the warm-up."""

    picture: str
    median_ms: float
    p95_ms: float
    repeats: int
    warmup: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderReport:
    """One file of the bundle on this machine.

    Attributes:
        precision: its key in the manifest, or the name of a Core ML package.
        file: relative to the bundle.
        size_bytes: of the file, or of all files of a package.
        provider: what computed: an ONNX Runtime execution provider, or Core ML.
        threads: that one picture was encoded with; None where the runtime chooses.
        thresholds: what it is held to.
        cosine_min, cosine_mean, max_abs_difference, error_to_spread: over all pictures; None where one gave no tokens.
        pictures: one verdict each.
        latency: None where nothing could be timed.
        load_ms: opening the file.
        peak_rss_mb: of the process, after this encoder; it never falls, so only the first one's is its own.
        problem: why it did not pass, beside what the pictures say; empty where it did.
    """

    precision: str
    file: str
    size_bytes: int
    provider: str
    threads: int | None
    thresholds: Thresholds
    cosine_min: float | None = None
    cosine_mean: float | None = None
    max_abs_difference: float | None = None
    error_to_spread: float | None = None
    pictures: tuple[PictureVerdict, ...] = ()
    latency: Latency | None = None
    load_ms: float | None = None
    peak_rss_mb: float | None = None
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether every picture is within the thresholds."""
        return bool(self.pictures) and not self.problem and not any(verdict.problem for verdict in self.pictures)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestReport:
    """A device bundle on one machine.

    Attributes:
        bundle: its folder's name.
        word_space: of its tokens.
        foundation: what it was trained against.
        onnxruntime, pillow: versions of what computed and what decoded.
        machine: where.
        encoders: one report each, in the manifest's order.
        coreml: a report of each Core ML package, or why there is none ("not run: ...").
    """

    bundle: str
    word_space: str
    foundation: str
    onnxruntime: str
    pillow: str
    machine: Machine
    encoders: tuple[EncoderReport, ...]
    coreml: tuple[EncoderReport, ...] | str

    @property
    def passed(self) -> bool:
        """Whether everything that was run passed, and something was."""
        ran = [*self.encoders, *([] if isinstance(self.coreml, str) else self.coreml)]
        return bool(ran) and all(report.passed for report in ran)

    def to_json(self) -> dict[str, Any]:
        """Return the form that the command prints; `passed` stands in every part."""
        coreml = self.coreml if isinstance(self.coreml, str) else _with_verdicts(self.coreml)
        return {"passed": self.passed, **asdict(self), "encoders": _with_verdicts(self.encoders), "coreml": coreml}


def _with_verdicts(reports: Sequence[EncoderReport]) -> list[dict[str, Any]]:
    return [{"passed": report.passed, **asdict(report)} for report in reports]
