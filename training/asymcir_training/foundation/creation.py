"""A foundation of one's own making: a pretrained sentence encoder as the locked text tower, a timm trunk to be aligned.

The result is an ordinary open_clip folder, loaded as "local-dir:FOLDER" like any other foundation, and it can be moved:
nothing in it names where it lies.
"""

import json
import logging
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asymcir_training.errors import FoundationError
from asymcir_training.foundation.model import CONFIG_FILE, TEXT_FOLDER, WEIGHTS_FILE, Foundation, needs_quick_gelu
from asymcir_training.foundation.preprocessing import IMAGENET_MEAN, IMAGENET_STD

CONTEXT_LENGTH = 77
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "sentencepiece.bpe.model",
)
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
_POOLINGS = {"pooling_mode_mean_tokens": "mean_pooler", "pooling_mode_cls_token": "cls_last_hidden_state_pooler"}
_LOG = logging.getLogger(__name__)


def write_initial_foundation(
    folder: Path, *, text: Path, trunk: str, size: int, trunk_weights: Path | None = None, pretrained: bool = False
) -> None:
    """Write an open_clip folder of a sentence encoder and a trunk that are not yet aligned.

    The joint space is the sentence encoder's own; a new linear projection takes the trunk's features there.

    Args:
        folder: to write; what is in it stays if not overwritten.
        text: Hugging Face folder of the sentence encoder (config.json, model.safetensors, tokenizer.json, and, where it
            has one, 1_Pooling/config.json).
        trunk: timm model.
        size: picture side.
        trunk_weights: state dict to start from; None keeps a random start, or timm's with `pretrained`.
        pretrained: start from timm's weights, through its hub.

    Raises:
        FoundationError: a folder without a sentence encoder, an unknown trunk, or weights that do not fit it.
    """
    missing = [name for name in _NEEDED if not (text / name).is_file()]
    if missing:
        raise FoundationError(
            f"expected a sentence encoder at {text} with {', '.join(_NEEDED)}; {missing[0]} is missing"
        )
    if not timm.is_model(trunk.split(".")[0]):
        raise FoundationError(f"unknown timm trunk {trunk!r}: see timm.list_models()")
    _copy_text(text, folder)
    record = json.loads((text / "config.json").read_text(encoding="utf-8"))
    width = int(record["hidden_size"])
    inside = str((folder / TEXT_FOLDER).resolve())
    model_config: dict[str, Any] = {
        "embed_dim": width,
        "vision_cfg": {
            "timm_model_name": trunk,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": size,
        },
        "text_cfg": {
            "hf_model_name": inside,
            "hf_tokenizer_name": inside,
            "hf_model_pretrained": True,
            "hf_proj_type": None,
            "hf_pooler_type": _pooling(text),
            "context_length": min(CONTEXT_LENGTH, int(record.get("max_position_embeddings", CONTEXT_LENGTH))),
            "width": width,
        },
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(width, model_config["vision_cfg"], model_config["text_cfg"])
    if trunk_weights is not None:
        load_trunk_weights(model.visual.trunk, trunk_weights)
    elif pretrained:
        model.visual.trunk.load_state_dict(timm.create_model(trunk, pretrained=True, num_classes=0).state_dict())
    model_config["text_cfg"] |= {"hf_model_name": TEXT_FOLDER, "hf_tokenizer_name": TEXT_FOLDER}
    preprocessing = {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    save_weights(model, folder)
    _write_json(folder / CONFIG_FILE, {"model_cfg": model_config, "preprocess_cfg": preprocessing})


def write_foundation(foundation: Foundation, folder: Path, *, source: str, pretrained: str | None = None) -> None:
    """Write a loaded foundation as an open_clip folder.

    Args:
        foundation: its weights as they are now.
        folder: to write.
        source: how it was asked for: "local-dir:FOLDER", whose other files are copied, or an open_clip architecture.
        pretrained: the tag that it was loaded with, which decides on QuickGELU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source.startswith("local-dir:"):
        old = Path(source.removeprefix("local-dir:"))
        if old.resolve() != folder.resolve():
            shutil.copytree(old, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS_FILE, ".*"))
    else:
        spec = foundation.preprocessing
        preprocessing = {
            "size": spec.size,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "resize_mode": spec.resize,
        }
        model_config = open_clip.get_model_config(source)
        if needs_quick_gelu(source, pretrained):
            model_config = {**model_config, "quick_gelu": True}
        config = {"model_cfg": model_config, "preprocess_cfg": preprocessing}
        _write_json(folder / CONFIG_FILE, config)
    save_weights(foundation.model, folder)


def save_weights(model: Any, folder: Path) -> None:
    """Write an open_clip model's weights beside its config, in place of the old ones."""
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    temporary = folder / f".{WEIGHTS_FILE}.tmp"
    save_file(weights, temporary)
    temporary.replace(folder / WEIGHTS_FILE)


def load_trunk_weights(trunk: nn.Module, path: Path) -> None:
    """Fill a timm trunk from a state dict.

    By name, also where the names stand behind a prefix (a whole foundation's "visual.trunk."); or by order where a port
    kept the order and not the names.

    Raises:
        FoundationError: an unreadable file, or tensors that fit neither way.
    """
    try:
        source: dict[str, Tensor] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, UnpicklingError) as exc:
        raise FoundationError(f"cannot read the trunk's weights {path}: {str(exc).splitlines()[0]}") from exc
    source = source.get("state_dict", source)  # type: ignore[assignment]
    ours = trunk.state_dict()
    first = next(iter(ours))
    prefixes = [name.removesuffix(first) for name in source if name == first or name.endswith(f".{first}")] or [""]
    candidates = {name: source.get(f"{prefixes[0]}{name}") for name in ours}
    by_name = {
        name: value for name, value in candidates.items() if value is not None and value.shape == ours[name].shape
    }
    if len(by_name) == len(ours):
        trunk.load_state_dict(by_name)
        return
    by_order = dict(zip(ours, source.values(), strict=False))
    wrong = [name for name, value in by_order.items() if ours[name].shape != value.shape]
    if wrong or len(by_order) != len(ours):
        raise FoundationError(
            f"the weights {path} do not fit the trunk: {len(by_name)} of {len(ours)} tensors by name, and by order the "
            f"first mismatch is {wrong[0] if wrong else 'the end'}"
        )
    _LOG.info("%s has other names than the trunk; its %d tensors fit in order", path.name, len(ours))
    trunk.load_state_dict(by_order)


def _copy_text(text: Path, folder: Path) -> None:
    inside = folder / TEXT_FOLDER
    inside.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", *_TOKENIZER_FILES):
        if (text / name).is_file():
            shutil.copyfile(text / name, inside / name)
            if name in _TOKENIZER_FILES:  # open_clip looks for a local folder's tokenizer beside its config
                shutil.copyfile(text / name, folder / name)


def _pooling(text: Path) -> str:
    """Read how a sentence encoder pools its words, as sentence-transformers records it; the mean where it does not."""
    path = text / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean_pooler"
    record = json.loads(path.read_text(encoding="utf-8"))
    asked = [name for name, value in record.items() if name.startswith("pooling_mode_") and value is True]
    if len(asked) != 1 or asked[0] not in _POOLINGS:
        raise FoundationError(f"expected {path} to pool by one of {', '.join(_POOLINGS)}, got {', '.join(asked)}")
    return _POOLINGS[asked[0]]


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
