"""The stages of `asymcir train`, with the demo's configurations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from asymcir_common.files import write_atomically
from asymcir_training.runs.log import LOG_FILE, read_log
from asymcir_training.stages import train_distil, train_foundation, train_union
from asymcir_training.stages.config_files import load_config
from asymcir_training.stages.sections import DistilRun, FoundationRun, UnionRun

CONFIGURATIONS = Path("demo/training")
STAGES: dict[str, tuple[type, Callable[[Any], Path]]] = {
    "foundation": (FoundationRun, train_foundation),
    "distil": (DistilRun, train_distil),
    "union": (UnionRun, train_union),
}
_WORK = "demo/work/"  # as the configurations have it


def train(name: str, work: Path, changes: Sequence[str] = ()) -> dict[str, float]:
    """Run a stage; returns the last figures of its log.

    Args:
        name: of STAGES.
        work: where the configuration's paths lead in place of demo/work; a copy that says so is left there.
        changes: "section.key=value", on top of the configuration.

    Raises:
        TrainingError: see the stages.
    """
    kind, stage = STAGES[name]
    text = (CONFIGURATIONS / f"{name}.toml").read_text(encoding="utf-8")
    copy = work / f"{name}.toml"
    write_atomically(copy, text.replace(_WORK, f"{work.as_posix()}/"))
    stage(load_config(kind, copy, changes))
    figures = [line for line in read_log(log_file(name, work, changes)) if "loss" in line][-1]
    return {key: value for key, value in figures.items() if isinstance(value, int | float)}


def log_file(name: str, work: Path, changes: Sequence[str] = ()) -> Path:
    """Return where `train` logged."""
    folder: Path = load_config(STAGES[name][0], work / f"{name}.toml", changes).run.work_folder
    return folder / name / LOG_FILE
