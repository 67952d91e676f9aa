"""What a run tells while it goes: JSON lines, progress with the time left, TensorBoard events, and curves at the end.

`log.jsonl` is the record; the rest is made from the same figures. A line is one of

    {"step": 40, "loss": 1.25, "steps_per_s": 3.1}          figures of the step that was the 40th
    {"step": 100, "validation": {"R@10": 0.42}}             after 100 steps
    {"step": 100, "changes": {"config.lr": "0.1 -> 0.2"}}   a changed identity that was accepted there
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymcir_common.files import write_atomically
from asymcir_common.installation import how_to_install

from asymcir_training.runs.durations import describe_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "log.jsonl"
CURVES_FILE = "curves.png"
TENSORBOARD_FOLDER = "tensorboard"
STEPS_PER_S = "steps_per_s"
WAIT_SHARE = "wait_share"
CLOCK_FIGURES = (STEPS_PER_S, WAIT_SHARE)
"""Figures that differ between two runs that are otherwise the same to the last bit."""

_COLUMNS = 3
_CELL_INCHES = (4.2, 2.8)
_LOG = logging.getLogger(__name__)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read `log.jsonl`; a line that a killed process left unfinished is passed over."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            _LOG.warning("%s: passed over an unfinished line", path)
    return lines


class RunLog:
    """The log of one run, from where it goes on."""

    def __init__(self, folder: Path, *, first: int, steps: int, validated: int, tensorboard: bool) -> None:
        """Open the log and cut what an interrupted run wrote after the state that this one goes on from.

        Args:
            folder: of the run.
            first: steps done so far.
            steps: in all.
            validated: the last step whose validation is finished; one of `first` that is not comes again.
            tensorboard: write events too.
        """
        self._folder, self._first, self._steps = folder, first, steps
        self._path = folder / LOG_FILE
        kept = [line for line in read_log(self._path) if _stays(line, first, validated)]
        write_atomically(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        self._stream = self._path.open("a", encoding="utf-8")
        self._events = _open_events(folder / TENSORBOARD_FOLDER, first) if tensorboard else None
        self._started = self._last = time.monotonic()
        self._waited_s: float | None = None

    def add_wait(self, seconds: float) -> None:
        """Count time that a step waited for its data; from the first call on the log tells the share."""
        self._waited_s = (self._waited_s or 0.0) + seconds

    def write_step(self, done: int, figures: Mapping[str, float]) -> None:
        """Log the figures of the step that was the `done`th, and how fast the run goes."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._started, 1e-9)
        clock = {STEPS_PER_S: float(f"{rate:.4g}")}
        if self._waited_s is not None:
            clock[WAIT_SHARE] = round(min(1.0, self._waited_s / max(now - self._last, 1e-9)), 4)
            self._waited_s = 0.0
        self._last = now
        self._append({"step": done, **_exact(figures), **clock})
        self._add_events("train", done, {**figures, **clock})
        shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        wait = f", {clock[WAIT_SHARE]:.0%} waiting for data" if WAIT_SHARE in clock else ""
        left = describe_time((self._steps - done) / rate)
        _LOG.info(
            "%s %d/%d  %s  %.2f steps/s%s, %s left", self._folder.name, done, self._steps, shown, rate, wait, left
        )

    def write_validation(self, done: int, figures: Mapping[str, float]) -> None:
        """Log what validation found after `done` steps."""
        self._append({"step": done, "validation": _exact(figures)})
        self._add_events("validation", done, figures)
        shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
        _LOG.info("%s validation after %d/%d  %s", self._folder.name, done, self._steps, shown)

    def write_changes(self, done: int, changes: Mapping[str, str]) -> None:
        """Log a changed identity that was accepted."""
        self._append({"step": done, "changes": dict(changes)})
        for key, change in changes.items():
            _LOG.warning("%s goes on at step %d with a changed %s: %s", self._folder.name, done, key, change)

    def sync(self) -> None:
        """Wait until the lines are on the disk: before a state that counts them as written."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self, *, curves: bool) -> None:
        """Close the files and draw `curves.png`; a picture that cannot be drawn is a warning, not a lost run."""
        self._stream.close()
        if self._events is not None:
            self._events.close()
        if not curves:
            return
        try:
            figure = draw_curves(read_log(self._path), title=self._folder.name)
            if figure is not None:
                temporary = self._folder / f".{CURVES_FILE}.tmp"
                names = ", ".join(axes.get_title() for axes in figure.axes)
                figure.savefig(temporary, format="png", dpi=120, metadata={"Description": names})
                temporary.replace(self._folder / CURVES_FILE)
        except ImportError as exc:
            _LOG.warning(
                "%s is not drawn, for %s is not installed: %s", CURVES_FILE, exc.name, how_to_install("training")
            )
        except OSError as exc:
            _LOG.warning("%s is not drawn: %s", CURVES_FILE, exc)

    def _append(self, line: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()

    def _add_events(self, group: str, done: int, figures: Mapping[str, float]) -> None:
        if self._events is None:
            return
        for name, value in figures.items():
            self._events.add_scalar(f"{group}/{name}", value, done)
        # Lines are rare; the writer's own rhythm of two minutes would lose what a killed run had shown.
        self._events.flush()


def draw_curves(lines: Sequence[Mapping[str, Any]], *, title: str) -> "Figure | None":
    """Draw every figure of a log over the steps, one plot each; None when there is nothing to draw.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        figures = {name: value for name, value in line.items() if name not in ("step", "validation", "changes")}
        figures |= {f"validation {name}": value for name, value in line.get("validation", {}).items()}
        for name, value in figures.items():
            curves.setdefault(name, []).append((line["step"], value))
    if not curves:
        return None
    # Without pyplot, which would choose a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(_CELL_INCHES[0] * columns, _CELL_INCHES[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for place, (name, points) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, linewidth=1.2, marker="o" if len(points) < 20 else "", markersize=3)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
        if place > len(curves) - columns:
            axes.set_xlabel("step")
    return figure


def _exact(figures: Mapping[str, float]) -> dict[str, float]:
    """Round to nine digits, which still tell every two float32 values apart."""
    return {name: float(f"{value:.9g}") for name, value in figures.items()}


def _stays(line: Mapping[str, Any], first: int, validated: int) -> bool:
    if line["step"] != first:
        return bool(line["step"] < first)
    # What happens between the state of `first` and the next step happens again: accepting changes, owed validation.
    return "changes" not in line and ("validation" not in line or validated >= first)


def _open_events(folder: Path, first: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as exc:
        _LOG.warning(
            "no TensorBoard events, for %s is not installed: %s", exc.name or "tensorboard", how_to_install("training")
        )
        return None
    # What an interrupted run wrote after its state is hidden, as it comes again.
    return SummaryWriter(str(folder), purge_step=first + 1)
