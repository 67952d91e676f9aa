"""The state of a run on disk: all that it needs to go on, in a folder that is either whole or not there.

STATES/step-000200 holds `state.pt` (the state of every part, by `torch.save`) and `state.json` (the run's identity and
the digest of `state.pt`). It is written beside its place, synced to the disk and renamed, so that a process that is
killed at any moment, or a power cut, leaves a state that loads. Loading runs no code of the file (`weights_only`).
"""

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from asymcir_common.files import write_atomically
from asymcir_common.manifest import digest_file
from torch import Tensor

from asymcir_training.errors import CheckpointError

STATES_FOLDER = "states"
BEST_FOLDER = "best"
FORMAT = "asymcir.run-state"
VERSION = 2
_PARTS = "state.pt"
_RECORD = "state.json"
_PREFIX = "step-"
_ABSENT = "absent"
_PLAIN = (type(None), bool, int, float, str)


class Stateful(Protocol):
    """Anything with torch's state-dict pair: a module, an optimizer, a gradient scaler, an average of weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors and plain values, nested in dicts, lists and tuples."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take the state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a state says of its run.

    Attributes:
        done: steps taken.
        identity: what makes the run this run; plain JSON.
        validated: the last step after which validation was finished.
        best_step, best_figure: the step whose validation figure was the largest, and that figure; None before any.
    """

    done: int
    identity: Mapping[str, Any]
    validated: int = 0
    best_step: int | None = None
    best_figure: float | None = None


def state_path(folder: Path, done: int) -> Path:
    """Return where the state after `done` steps is."""
    return folder / f"{_PREFIX}{done:06d}"


def newest_state(folder: Path) -> Path | None:
    """Find the state of the most steps in `folder`; None when there is none."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix(_PREFIX)), default=None)


def save_state(folder: Path, record: RunRecord, parts: Mapping[str, Stateful]) -> Path:
    """Write `folder`/step-NNNNNN; a state of that step that is there already stays, for it is the same.

    Raises:
        CheckpointError: no room, a value that cannot be kept, or NaN in a tensor; the states before are untouched.
    """
    place = state_path(folder, record.done)
    if place.is_dir():
        return place
    states = {name: part.state_dict() for name, part in parts.items()}
    for name, state in states.items():
        _check_kept(state, name)
    temporary = folder / f".{place.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with (temporary / _PARTS).open("wb") as stream:
            torch.save(states, stream)
        _sync(temporary / _PARTS)
        _write_record(temporary, record, asdict(digest_file(temporary / _PARTS)))
        temporary.rename(place)
        _sync(folder)
    except (OSError, RuntimeError) as exc:  # torch's writer makes the latter of the former
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(_storages(states).values())
        raise CheckpointError(
            f"cannot write the state of step {record.done} to {place} ({exc}): it needs about {needed:,} bytes, "
            f"{shutil.disk_usage(folder.parent).free:,} are free; make room and start again from the state before"
        ) from exc
    return place


def update_record(path: Path, record: RunRecord) -> None:
    """Replace what a state says of its run; its parts stay."""
    found = _read(path)
    _write_record(path, record, found["parts"])


def read_record(path: Path) -> RunRecord:
    """Read what a state says of its run.

    Raises:
        CheckpointError: `state.json` is missing, damaged or of another version.
    """
    try:
        return RunRecord(**_read(path)["run"])
    except (KeyError, TypeError) as exc:
        raise _damaged(path / _RECORD, f"{type(exc).__name__}: {exc}") from exc


def load_parts(path: Path, parts: Mapping[str, Stateful]) -> None:
    """Give each part its state.

    Raises:
        CheckpointError: a file that is missing or damaged, a part that the state lacks, or one that it does not fit.
    """
    found = _read(path)
    parts_path = path / _PARTS
    try:
        digest, expected = asdict(digest_file(parts_path)), dict(found["parts"])
        size, expected_size = digest["size_bytes"], expected["size_bytes"]
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise _damaged(parts_path, f"{type(exc).__name__}: {exc}") from exc
    if digest != expected:
        same_size = size == expected_size
        kind = "its digest is another one" if same_size else f"expected {expected_size:,} bytes, got {size:,}"
        raise _damaged(parts_path, kind)
    try:
        states = torch.load(parts_path, map_location="cpu", weights_only=True)
        missing = sorted({*parts} - states.keys())
    except Exception as exc:  # unpickling what is no state may raise anything
        raise _damaged(parts_path, f"{type(exc).__name__}: {_shorten(exc)}") from exc
    if missing:
        raise CheckpointError(
            f"the state {path} has no {', '.join(missing)} (it holds {', '.join(states)}): start in another folder"
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(states[name])
        except (RuntimeError, ValueError, KeyError) as exc:
            raise CheckpointError(
                f"{name} in the state {path} does not fit this run ({_shorten(exc)}): start in another folder"
            ) from exc


def restore_best(run_folder: Path, parts: Mapping[str, Stateful]) -> RunRecord:
    """Give parts the state of the run's best step by validation.

    Args:
        run_folder: LoopConfig.folder.
        parts: some or all of what the run kept as its `best_parts`.

    Raises:
        CheckpointError: no best state was kept, or see `load_parts`.
    """
    path = newest_state(run_folder / BEST_FOLDER)
    if path is None:
        raise CheckpointError(f"{run_folder / BEST_FOLDER} holds no state: run with validation and a `best` figure")
    load_parts(path, parts)
    return read_record(path)


def prune_states(folder: Path, keep: Path | None) -> None:
    """Remove every state but one, and what interrupted writes left."""
    for path in (*folder.glob(f"{_PREFIX}*"), *folder.glob(f".{_PREFIX}*")):
        if path == keep:
            continue
        if not path.name.startswith("."):
            # Renamed first: a removal that is interrupted must not leave half a state under a state's name.
            path = path.rename(folder / f".{path.name}.old")
        shutil.rmtree(path, ignore_errors=True)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Compare two identities: dotted key -> "old -> new", for those that differ."""
    before, after = _flatten(old), _flatten(new)
    return {
        key: f"{before.get(key, _ABSENT)} -> {after.get(key, _ABSENT)}"
        for key in sorted({*before, *after})
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    }


def _check_kept(value: Any, name: str) -> None:
    """Refuse what `weights_only` would not load again, and NaN."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.isnan().any():
            raise CheckpointError(
                f"{name} holds NaN, so this state is not kept: lower the learning rate and start again from the state "
                "before (a step that returns the gradient's norm is stopped at the step itself)"
            )
    elif type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            if type(key) not in (str, int):
                raise CheckpointError(f"cannot keep {name}: expected keys of text or whole numbers, got {key!r}")
            _check_kept(inner, f"{name}.{key}")
    elif type(value) in (list, tuple):
        for place, inner in enumerate(value):
            _check_kept(inner, f"{name}.{place}")
    elif type(value) not in _PLAIN:
        raise CheckpointError(f"cannot keep {name}: expected tensors and plain values, got {type(value).__name__}")


def _storages(value: Any) -> dict[int, int]:
    """Return address -> bytes of what the tensors of a nested state lie in, each once."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return {address: size for item in inner for address, size in _storages(item).items()}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(inner, ensure_ascii=False)
    return flat


def _write_record(path: Path, record: RunRecord, parts: Mapping[str, Any]) -> None:
    text = {"format": FORMAT, "version": VERSION, "run": asdict(record), "parts": parts}
    write_atomically(path / _RECORD, json.dumps(text, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        kind, version = found["format"], found["version"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise _damaged(path / _RECORD, f"{type(exc).__name__}: {exc}") from exc
    if (kind, version) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{path / _RECORD} is a {kind} of version {version}, this asymcir reads {FORMAT} of version {VERSION}: "
            "go on with the version that wrote it, or start in another folder"
        )
    return dict(found)


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({what}): copy it back from where you keep copies, or remove the folder {path.parent} "
        "to begin again"
    )


def _shorten(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
