"""Checkpoints: a folder with `model.safetensors` and `checkpoint.json`, written so that a crash leaves the old one."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asymcir_protos import Preprocessing
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asymcir_training.errors import CheckpointError
from asymcir_training.light import LightEncoder
from asymcir_training.union import UnionHead

_WEIGHTS = "model.safetensors"
_RECORD = "checkpoint.json"
LIGHT_ENCODER = "asymcir.light-encoder"
UNION_HEAD = "asymcir.union-head"


def save_checkpoint(
    folder: Path, *, kind: str, model: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Write a checkpoint beside `folder`, then put it in place of the old one."""
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


def save_light_encoder(folder: Path, model: LightEncoder, metadata: Mapping[str, Any]) -> None:
    """Write a light encoder; metadata must name `word_space` and `foundation`."""
    save_checkpoint(folder, kind=LIGHT_ENCODER, model=model, config=model.config, metadata=metadata)


def load_light_encoder(folder: Path) -> tuple[LightEncoder, dict[str, Any]]:
    """Load a light encoder in eval mode, and its metadata.

    Raises:
        CheckpointError: see `read_checkpoint`; or weights that do not fit the configuration.
    """
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


def save_union_head(folder: Path, model: UnionHead, metadata: Mapping[str, Any]) -> None:
    """Write a UNION head; metadata must name `word_space` and `foundation`."""
    save_checkpoint(
        folder, kind=UNION_HEAD, model=model, config={"embedding_width": model.embedding_width}, metadata=metadata
    )


def load_union_head(folder: Path) -> tuple[UnionHead, dict[str, Any]]:
    """Load a UNION head in eval mode, and its metadata.

    Raises:
        CheckpointError: see `read_checkpoint`; or weights that do not fit the configuration.
    """
    config, metadata, weights = read_checkpoint(folder, kind=UNION_HEAD)
    model = UnionHead(config["embedding_width"])
    _fit(model, weights, folder)
    return model.eval(), metadata


def _fit(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as exc:
        raise CheckpointError(
            f"the weights in {folder} do not fit its configuration: {str(exc).splitlines()[0]}"
        ) from exc
