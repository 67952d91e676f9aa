"""What every stage does first: processes, the configuration beside the run, pictures, teacher outputs, the loop."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from asymcir_common.files import write_atomically

from asymcir_training.engine.execution import Execution, PickedRows
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import start_processes
from asymcir_training.errors import DataError
from asymcir_training.foundation.model import Foundation
from asymcir_training.models.checkpoints import (
    RECORD_FILE,
    check_free,
)
from asymcir_training.pictures.sets import PictureSet, open_pictures
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.runs.state import STATES_FOLDER, newest_state
from asymcir_training.stages.config_files import to_plain
from asymcir_training.stages.sections import (
    RunSection,
)
from asymcir_training.teacher.cache import TeacherCache, Usable, build_teacher_cache
from asymcir_training.teacher.texts import TextCache

_CONFIG_FILE = "config.json"
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


def prepare(run: RunSection, config: object, *, stage: str, workers: int, mark: str = RECORD_FILE) -> Execution:
    """Join the processes, refuse what the result would destroy, and keep the configuration beside the stage's states.

    A resumed run has the configuration that it began with. An attempt that failed before its first state leaves nothing
    that depends on its configuration, so the next one's replaces it.
    """
    processes = start_processes(run.device)
    check_free(run.out, mark)
    if processes.is_main:
        folder = run.work_folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        if newest_state(folder / STATES_FOLDER) is None or run.allow_changes:
            write_atomically(folder / _CONFIG_FILE, json.dumps(to_plain(config), indent=2) + "\n")
    else:
        logging.getLogger("asymcir_training").setLevel(logging.ERROR)  # one voice is enough
    precision = Precision(run.precision, processes.device)
    return Execution(processes=processes, precision=precision, chunks=run.chunks, workers=workers, ema=run.ema)


def open_run_pictures(specs: Sequence[str], run: RunSection) -> PictureSet:
    """Open a run's pictures; the tables of contents of archives are kept in its work folder."""
    return open_pictures(specs, index_folder=run.work_folder / "archives")


def loop_of(
    run: RunSection, stage: str, *, rows: int, batch: int, best: str = "", every_epoch: bool = False
) -> LoopConfig:
    """Make the loop's settings of a run over so many rows, a batch a step.

    Args:
        run: see its class.
        stage: whose folder the run's is.
        rows: of an epoch.
        batch: of a step.
        best: figure of the validation that decides.
        every_epoch: validate after every epoch where the run does not say after how many steps.
    """
    epoch = max(1, rows // batch)
    return LoopConfig(
        folder=run.work_folder / stage,
        steps=max(1, round(run.epochs * epoch)),
        seed=run.seed,
        save_every=run.save_every,
        log_every=run.log_every,
        validate_every=run.validate_every or (epoch if every_epoch else 0),
        best=best,
        tensorboard=run.tensorboard,
        allow_changes=run.allow_changes,
    )


def open_teacher_cache(
    root: Path, foundation: Foundation, pictures: PictureSet, execution: Execution, *, patches: bool
) -> TeacherCache:
    """Build the cache in the main process, whose progress is seen, then open it in every one.

    The main process decides which pictures are used: one that it cannot read may be read by another process.
    """

    def build(usable: Usable | None) -> TeacherCache:
        return build_teacher_cache(
            root,
            foundation,
            pictures,
            patches=patches,
            workers=execution.workers,
            device=execution.processes.device,
            autocast=execution.precision.lower,
            usable=usable,
        )

    found = build(None) if execution.processes.is_main else None
    usable: Usable | None = execution.processes.share_object(None if found is None else found.usable)
    return build(usable) if found is None else found


def embed_texts(root: Path, foundation: Foundation, texts: Sequence[str], execution: Execution) -> PickedRows:
    """Embed texts in the main process, then open them in every one: [n, E], L2-normalised."""
    return main_first(execution, lambda: TextCache(root, foundation).embed(texts))


def main_first(execution: Execution, make: Callable[[], T]) -> T:
    """Make something in the main process, whose progress is seen, then open what it kept in the others."""
    found = make() if execution.processes.is_main else None
    execution.processes.barrier()
    return found if found is not None else make()


def check_word_space(folder: Path, word_space: object, foundation: Foundation) -> None:
    """Refuse an encoder of another foundation.

    Raises:
        DataError: the word spaces differ.
    """
    if word_space != foundation.word_space():
        raise DataError(
            f"the encoder {folder} is of the word space {str(word_space)[:12]}, the foundation of "
            f"{foundation.word_space()[:12]}: pass the foundation that it was distilled from"
        )


def describe_foundation(foundation: Foundation) -> dict[str, str]:
    """Say in a checkpoint what it belongs to: the text tower's space, and the visual tower that taught it."""
    return {
        "word_space": foundation.word_space(),
        "foundation": foundation.name,
        "visual_digest": foundation.visual_digest(),
    }
