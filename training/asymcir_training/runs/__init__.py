"""A run from step to step: the loop, its state on the disk, exact resume, the log, and clean stops."""

from asymcir_training.runs.durations import describe_time
from asymcir_training.runs.log import read_log
from asymcir_training.runs.loop import run_steps
from asymcir_training.runs.settings import LoopConfig, RunSummary
from asymcir_training.runs.state import restore_best

__all__ = [
    "LoopConfig",
    "RunSummary",
    "describe_time",
    "read_log",
    "restore_best",
    "run_steps",
]
