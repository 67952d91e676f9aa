"""What a run keeps while it goes: states to go on from, the best weights, its log, and the batch that broke it."""

import json
import logging
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from asymcir_common.files import write_atomically

from asymcir_training.errors import CheckpointError, TrainingError
from asymcir_training.runs.log import RunLog
from asymcir_training.runs.state import (
    BEST_FOLDER,
    STATES_FOLDER,
    RunRecord,
    Stateful,
    changed_keys,
    load_parts,
    newest_state,
    prune_states,
    read_record,
    save_state,
    state_path,
    update_record,
)
from asymcir_training.runs.stopping import Interrupted

if TYPE_CHECKING:
    from asymcir_training.engine.processes import Processes
    from asymcir_training.runs.settings import LoopConfig

BAD_BATCH_FILE = "bad-batch.json"
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


def all_finite(figures: Mapping[str, float]) -> bool:
    """Tell whether no figure is NaN or infinite."""
    return all(math.isfinite(value) for value in figures.values())


class RunKeeper:
    """The files of one run, and what its processes agree on: the main one writes, all read."""

    def __init__(
        self,
        config: "LoopConfig",
        *,
        identity: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        best_parts: Mapping[str, Stateful],
        validate: Callable[[int], dict[str, float]] | None,
        processes: "Processes | None",
    ) -> None:
        self.log: RunLog | None = None  # the main process's
        self._config, self._parts, self._best_parts, self._validate = config, parts, best_parts, validate
        self._processes = processes if processes is not None and processes.world > 1 else None
        self._is_main = self._processes is None or self._processes.is_main
        self._states, self._best = config.folder / STATES_FOLDER, config.folder / BEST_FOLDER
        # Plain JSON, so that what comes back from the file compares equal.
        plain = json.loads(json.dumps({**identity, "steps": config.steps, "seed": config.seed}))
        self.record = RunRecord(done=0, identity=plain)  # of the state that is on the disk

    def resume(self) -> int:
        """Load the newest state, open the log, and return the number of steps done."""
        path = self._share(newest_state(self._states) if self._is_main else None)
        changes: dict[str, str] = {}
        if path is not None:
            changes = self._load(path)
        if self._is_main:
            self._config.folder.mkdir(parents=True, exist_ok=True)
            prune_states(self._states, path)
            best_step = self.record.best_step
            prune_states(self._best, None if best_step is None else state_path(self._best, best_step))
            self.log = RunLog(
                self._config.folder,
                first=self.record.done,
                steps=self._config.steps,
                validated=self.record.validated,
                tensorboard=self._config.tensorboard,
            )
            if changes:
                self.log.write_changes(self.record.done, changes)
        return self.record.done

    def owes_validation(self, done: int) -> bool:
        """Tell whether validation is due after `done` steps and not finished yet."""
        every = self._config.validate_every
        due = done == self._config.steps or (every > 0 and done % every == 0)
        return self._validate is not None and due and done > self.record.validated

    def save(self, done: int) -> None:
        """Keep the state after `done` steps, then remove the one before."""
        self.record = replace(self.record, done=done)

        def write(log: RunLog) -> None:
            log.sync()
            prune_states(self._states, save_state(self._states, self.record, self._parts))

        self._on_main(write)

    def validate(self) -> None:
        """Validate the state that was just kept, and keep its weights when they are the best.

        The order makes up for being killed anywhere: the state counts as validated last of all, and until then the old
        best is there; a resumed run validates again what does not count.
        """
        if self._validate is None:
            return
        done, name = self.record.done, self._config.best
        figures = self._share(dict(self._validate(done)))
        if not all_finite(figures):
            raise TrainingError(
                f"validation after {done} steps gave {_show(figures)}: check the validation data; the state is kept"
            )
        if name and name not in figures:
            raise TrainingError(f"expected validation to give {name!r}, to keep the best by; got {', '.join(figures)}")
        record = replace(self.record, validated=done)
        improved = bool(name) and (record.best_figure is None or figures[name] > record.best_figure)
        if improved:
            record = replace(record, best_step=done, best_figure=figures[name])
        self.record = record

        def write(log: RunLog) -> None:
            log.write_validation(done, figures)
            log.sync()
            best = save_state(self._best, record, self._best_parts) if improved else None
            update_record(state_path(self._states, done), record)
            if best is not None:
                prune_states(self._best, best)

        self._on_main(write)

    def make_interrupted(self, number: int, problem: str = "") -> Interrupted:
        """Say what signal stopped the run, and where it will go on."""
        done, name = self.record.done, signal.Signals(number).name
        kept = (
            f"saved at step {done} of {self._config.steps} in {state_path(self._states, done)}; the same command goes "
            "on from there"
            if done
            else "nothing was saved yet; the same command begins again"
        )
        return Interrupted(f"stopped by {name}{problem and f' ({problem})'}: {kept}")

    def make_bad(
        self,
        number: int,
        figures: Mapping[str, float],
        ranks: Sequence[int],
        describe: Callable[[int], Mapping[str, Any]] | None,
    ) -> TrainingError:
        """Say what a step gave that cannot be gone on with, and write down its batch."""
        path = self._config.folder / BAD_BATCH_FILE
        if self._is_main:
            record = {
                "step": number,
                "figures": {name: value if math.isfinite(value) else str(value) for name, value in figures.items()},
                "ranks": [*ranks],
                "batch": None if describe is None else describe(number),
            }
            write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False, default=_to_plain) + "\n")
        where = f" in process {', '.join(map(str, ranks))}" if self._processes is not None else ""
        kept = f"the last good state (step {self.record.done}) is kept" if self.record.done else "no state was kept yet"
        return TrainingError(
            f"step {number} gave {_show(figures)}{where}: lower the learning rate, or look at the batch, which {path} "
            f"names; {kept}"
        )

    def _load(self, path: Path) -> dict[str, str]:
        """Load a state and return what changed in the identity since."""
        found = read_record(path)
        changes = changed_keys(found.identity, self.record.identity)
        if changes and not self._config.allow_changes:
            listed = "; ".join(f"{key}: {change}" for key, change in changes.items())
            raise CheckpointError(
                f"{path} is the state of another run (differs in {listed}): pass another folder, remove "
                f"{self._config.folder}, or accept the changes with allow_changes"
            )
        load_parts(path, self._parts)
        if found.best_step is not None and not state_path(self._best, found.best_step).is_dir():
            _LOG.warning(
                "%s is gone, so the next validation counts as the best", state_path(self._best, found.best_step)
            )
            found = replace(found, best_step=None, best_figure=None)
        if any(key.startswith("validation") for key in changes):  # figures of another question are no record to beat
            found = replace(found, best_step=None, best_figure=None)
        self.record = replace(found, identity=self.record.identity)
        _LOG.info("resuming %s at step %d", self._config.folder.name, found.done)
        return changes

    def _on_main(self, write: Callable[[RunLog], None]) -> None:
        """Let the main process write, and stop them all where it could not."""
        problem: CheckpointError | None = None
        if self.log is not None:
            try:
                write(self.log)
            except CheckpointError as exc:
                problem = exc
        message = self._share(None if problem is None else str(problem))
        if message is not None:
            raise CheckpointError(message) from problem

    def _share(self, value: T) -> T:
        """Give every process the main one's value."""
        return value if self._processes is None else self._processes.share_object(value)


def _show(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _to_plain(value: Any) -> Any:
    """Make JSON of what a batch may be described with: arrays, tensors and paths."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
