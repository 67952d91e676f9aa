"""The state of a run on disk: all that it needs to go on, in a folder that is either whole or not there.

STATES/step-000200 holds `state.safetensors` (every tensor of every part) and `state.json` (everything else: the run's
identity, the parts' plain values, the digest of the tensors). It is written beside its place, synced to the disk and
renamed, so that a process that is killed at any moment, or a power cut, leaves a state that loads.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from asymcir_common.files import write_atomically
from asymcir_common.manifest import digest_file
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asymcir_training.errors import CheckpointError

STATES_FOLDER = "states"
BEST_FOLDER = "best"
FORMAT = "asymcir.run-state"
VERSION = 1
_TENSORS = "state.safetensors"
_RECORD = "state.json"
_PREFIX = "step-"
_ABSENT = "absent"
_CHANNELS_LAST = "channels_last"


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
    # Held until all is packed: a tensor that was freed could lend its address to the next one.
    states = {name: part.state_dict() for name, part in parts.items()}
    packer = _Packer()
    packed = {name: packer.pack(state, name) for name, state in states.items()}
    temporary = folder / f".{place.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(packer.tensors, temporary / _TENSORS)
        _sync(temporary / _TENSORS)
        _write_record(temporary, record, asdict(digest_file(temporary / _TENSORS)), packed)
        temporary.rename(place)
        _sync(folder)
    except (OSError, SafetensorError) as exc:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(value.nbytes for value in packer.tensors.values())
        raise CheckpointError(
            f"cannot write the state of step {record.done} to {place} ({exc}): it needs about {needed:,} bytes, "
            f"{shutil.disk_usage(folder.parent).free:,} are free; make room and start again from the state before"
        ) from exc
    return place


def update_record(path: Path, record: RunRecord) -> None:
    """Replace what a state says of its run; its parts stay."""
    found = _read(path)
    _write_record(path, record, found["tensors"], found["parts"])


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
    tensors_path = path / _TENSORS
    try:
        digest = asdict(digest_file(tensors_path))
        if digest != found["tensors"]:
            size, expected = digest["size_bytes"], found["tensors"]["size_bytes"]
            kind = f"expected {expected:,} bytes, got {size:,}" if size != expected else "its digest is another one"
            raise _damaged(tensors_path, kind)
        tensors = load_file(tensors_path)
        packed = found["parts"]
        if missing := sorted({*parts} - {*packed}):
            raise CheckpointError(
                f"the state {path} has no {', '.join(missing)} (it holds {', '.join(packed)}): start in another folder"
            )
        states = {name: _unpack(packed[name], tensors) for name in parts}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as exc:
        raise _damaged(tensors_path, f"{type(exc).__name__}: {exc}") from exc
    for name, part in parts.items():
        try:
            part.load_state_dict(states[name])
        except (RuntimeError, ValueError, KeyError) as exc:
            first_line = " ".join(str(exc).split())[:300]
            raise CheckpointError(
                f"{name} in the state {path} does not fit this run ({first_line}): start in another folder"
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


class _Packer:
    """Splits nested state into JSON and named tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._markers: dict[tuple[Any, ...], dict[str, str]] = {}

    def pack(self, value: Any, name: str) -> Any:
        """Return JSON in which `{"tensor": NAME}` stands for a tensor, and dicts and tuples are told apart."""
        if isinstance(value, Tensor):
            return self._pack_tensor(value.detach(), name)
        if isinstance(value, Mapping):  # as pairs: the keys of an optimizer's state are numbers
            return {"dict": [[self._check_key(key, name), self.pack(v, f"{name}.{key}")] for key, v in value.items()]}
        if isinstance(value, list | tuple):
            items = [self.pack(item, f"{name}.{place}") for place, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if value is None or isinstance(value, str | int | float):
            return value
        raise CheckpointError(f"cannot keep {name}: expected tensors and plain values, got {type(value).__name__}")

    def _check_key(self, key: Any, name: str) -> str | int:
        if not isinstance(key, str | int):
            raise CheckpointError(f"cannot keep {name}: expected keys of text or whole numbers, got {key!r}")
        return key

    def _pack_tensor(self, value: Tensor, name: str) -> dict[str, str]:
        if value.is_floating_point() and value.isnan().any():
            raise CheckpointError(
                f"{name} holds NaN, so this state is not kept: lower the learning rate and start again from the state "
                "before (a step that returns the gradient's norm is stopped at the step itself)"
            )
        # One tensor under two names (tied weights) is written once: safetensors refuses shared memory.
        address = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and address in self._markers:
            return self._markers[address]
        while name in self.tensors:
            name += "'"
        marker = {"tensor": name}
        if not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last):
            # Kept, so that a resumed optimizer computes in the same order, to the last bit.
            marker["layout"] = _CHANNELS_LAST
            value = value.permute(0, 2, 3, 1)
        if value.untyped_storage().nbytes() != value.nbytes:
            value = value.clone()  # a view of a larger tensor
        self.tensors[name] = value.contiguous().cpu()
        self._markers[address] = marker
        return marker


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    if "dict" in value:
        return {key: _unpack(item, tensors) for key, item in value["dict"]}
    tensor = tensors[value["tensor"]].clone()  # what is loaded may be a view of the file
    return tensor.permute(0, 3, 1, 2) if value.get("layout") == _CHANNELS_LAST else tensor


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(inner, ensure_ascii=False)
    return flat


def _write_record(path: Path, record: RunRecord, tensors: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    text = {"format": FORMAT, "version": VERSION, "run": asdict(record), "tensors": tensors, "parts": parts}
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


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
