"""Checkpoints: a folder with `model.safetensors` and `checkpoint.json`, written so that a crash leaves the old one."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from asymcir_common import Preprocessing
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asymcir_training.errors import CheckpointError
from asymcir_training.models.light_encoder import LightEncoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.models.transagg import TransAgg
from asymcir_training.models.union_head import UnionHead

Model = TypeVar("Model", bound=nn.Module)
_WEIGHTS = "model.safetensors"
_RECORD = RECORD_FILE = "checkpoint.json"
LIGHT_ENCODER = "asymcir.light-encoder"
SYMMETRIC_ENCODER = "asymcir.symmetric-encoder"
TRANSAGG = "asymcir.transagg"
UNION_HEAD = "asymcir.union-head"


def save_checkpoint(
    folder: Path, *, kind: str, model: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write a checkpoint beside `folder`, then put it in place of the old one.

    Raises:
        CheckpointError: the folder holds something else.
    """
    check_free(folder, _RECORD)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, temporary / _WEIGHTS)
    record = {"kind": kind, "config": dict(config), "metadata": dict(metadata)}
    (temporary / _RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_free(folder: Path, mark: str) -> None:
    """Refuse a folder that a result would replace and that is no earlier result.

    Args:
        folder: to be written.
        mark: file that an earlier result has.

    Raises:
        CheckpointError: it holds something else.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file()):
        raise CheckpointError(
            f"{folder} is there and is no earlier result of this command (it has no {mark}): it would be replaced; "
            "pass a folder that is new or empty"
        )


def read_checkpoint(folder: Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Read config, metadata and weights.

    Raises:
        CheckpointError: no such folder, another kind of checkpoint, or damaged files.
    """
    path = folder / _RECORD
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at {folder} with {_RECORD} and {_WEIGHTS}, found none")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, config, metadata = record["kind"], record["config"], record["metadata"]
        weights = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as exc:
        raise CheckpointError(f"the checkpoint {folder} is damaged ({type(exc).__name__}: {exc})") from exc
    if found != kind:
        raise CheckpointError(f"expected a checkpoint of kind {kind} at {folder}, got {found}")
    return config, metadata, weights


def read_kind(folder: Path) -> str:
    """Return the kind of a checkpoint, "" where it cannot be told; loading it says why."""
    try:
        return str(json.loads((folder / _RECORD).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def save_light_encoder(folder: str | Path, model: LightEncoder, metadata: Mapping[str, Any]) -> None:
    """Write a light encoder; metadata must name `word_space` and `foundation`."""
    folder = Path(folder)
    save_checkpoint(folder, kind=LIGHT_ENCODER, model=model, config=model.config, metadata=metadata)


def load_light_encoder(folder: str | Path) -> tuple[LightEncoder, dict[str, Any]]:
    """Load a light encoder in eval mode, and its metadata.

    Raises:
        CheckpointError: see `read_checkpoint`; or weights that do not fit the configuration.
    """
    folder = Path(folder)
    config, metadata, weights = read_checkpoint(folder, kind=LIGHT_ENCODER)
    preprocessing = Preprocessing.from_json(config["preprocessing"])
    model = LightEncoder(
        config["backbone"],
        sentence_length=config["sentence_length"],
        word_width=config["word_width"],
        width=config["width"],
        preprocessing=preprocessing,
    )
    _fit(model, weights, folder)
    return model.eval(), metadata


def save_symmetric_encoder(folder: Path, model: SymmetricEncoder, metadata: Mapping[str, Any]) -> None:
    """Write a symmetric encoder's token learner.

    Metadata must name `word_space`, `foundation`, and `visual_digest`, whose patches it reads.
    """
    save_checkpoint(folder, kind=SYMMETRIC_ENCODER, model=model, config=model.config, metadata=metadata)


def load_symmetric_encoder(folder: Path) -> tuple[SymmetricEncoder, dict[str, Any]]:
    """Load a symmetric encoder in eval mode, without its foundation, and its metadata.

    Raises:
        CheckpointError: see `read_checkpoint`; or weights that do not fit the configuration.
    """
    config, metadata, weights = read_checkpoint(folder, kind=SYMMETRIC_ENCODER)
    model = SymmetricEncoder(
        patch_width=config["patch_width"],
        sentence_length=config["sentence_length"],
        word_width=config["word_width"],
        width=config["width"],
        preprocessing=Preprocessing.from_json(config["preprocessing"]),
    )
    _fit(model, weights, folder)
    return model.eval(), metadata


def save_transagg(folder: Path, model: TransAgg, metadata: Mapping[str, Any]) -> None:
    """Write a query fusion.

    Metadata must name `word_space`, `foundation`, `visual_digest`, the `target` type it was trained with and, for
    union, `target_space`, which tells the head that was trained with it from others.
    """
    save_checkpoint(
        folder, kind=TRANSAGG, model=model, config={"embedding_width": model.embedding_width}, metadata=metadata
    )


def load_transagg(folder: Path) -> tuple[TransAgg, dict[str, Any]]:
    """Load a query fusion in eval mode, and its metadata.

    Raises:
        CheckpointError: see `read_checkpoint`; or weights that do not fit the configuration.
    """
    return _load_of_width(folder, TRANSAGG, TransAgg)


def save_union_head(folder: str | Path, model: UnionHead, metadata: Mapping[str, Any]) -> None:
    """Write a UNION head; metadata must name `word_space` and `foundation`."""
    folder = Path(folder)
    save_checkpoint(
        folder, kind=UNION_HEAD, model=model, config={"embedding_width": model.embedding_width}, metadata=metadata
    )


def load_union_head(folder: str | Path) -> tuple[UnionHead, dict[str, Any]]:
    """Load a UNION head in eval mode, and its metadata.

    Raises:
        CheckpointError: see `read_checkpoint`; or weights that do not fit the configuration.
    """
    folder = Path(folder)
    return _load_of_width(folder, UNION_HEAD, UnionHead)


def _load_of_width(folder: Path, kind: str, make: Callable[[int], Model]) -> tuple[Model, dict[str, Any]]:
    """Load a model that its embedding width alone describes."""
    config, metadata, weights = read_checkpoint(folder, kind=kind)
    model = make(config["embedding_width"])
    _fit(model, weights, folder)
    return model.eval(), metadata


def _fit(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as exc:
        raise CheckpointError(
            f"the weights in {folder} do not fit its configuration: {str(exc).splitlines()[0]}"
        ) from exc
