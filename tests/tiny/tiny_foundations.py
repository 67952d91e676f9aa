"""Tiny random foundations, saved as local open_clip folders: causal, bidirectional with a mask, reading its padding."""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

WORD_WIDTH = 48
EMBEDDING_WIDTH = 32
_PREPROCESSING = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 16}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": WORD_WIDTH, "heads": 4, "layers": 2}
_WORDS = ("photo", "that", "of", "is", "has", "cat", "dog", "red", "blue", "##ing", "中", "é")


def write_clip(folder: Path) -> Path:
    """Write a causal CLIP with a transformer visual tower and open_clip's own tokenizer."""
    torch.manual_seed(1)
    config = {"embed_dim": EMBEDDING_WIDTH, "vision_cfg": _VISION, "text_cfg": _TEXT}
    return _save(folder, open_clip.CLIP(**config), config)


def write_bidirectional(folder: Path) -> Path:
    """Write a foundation with open_clip's text transformer without a causal mask, which reads its padding (SigLIP)."""
    torch.manual_seed(4)
    text = _TEXT | {"context_length": 24, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    config = {"embed_dim": EMBEDDING_WIDTH, "vision_cfg": _VISION, "text_cfg": text}
    return _save(folder, open_clip.CustomTextCLIP(**config), config | {"custom_text": True})


def write_bert(folder: Path) -> Path:
    """Write a foundation with a timm visual tower and a BERT text tower of few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(2)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [character for character in string.printable if not character.isspace()]
    pieces = [*special, *letters, *(f"##{letter}" for letter in string.ascii_lowercase), *_WORDS]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    tower = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WORD_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    BertModel(tower).save_pretrained(folder / "tower")
    config = {
        "embed_dim": EMBEDDING_WIDTH,
        "vision_cfg": {
            "timm_model_name": "test_efficientnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {
            "hf_model_name": str(folder / "tower"),
            "hf_tokenizer_name": str(folder),
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler",
            "hf_model_pretrained": False,
            "context_length": 40,
        },
    }
    model = open_clip.CustomTextCLIP(**config)
    calibrate(model.visual, 64)
    return _save(folder, model, config)


def copy_sentence_encoder(bert: Path, folder: Path) -> Path:
    """Take the BERT tower of such a foundation as a sentence encoder's folder."""
    shutil.copytree(bert / "tower", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bert / name, folder / name)
    return folder


def calibrate(module: nn.Module, size: int) -> None:
    """Give batch norms the statistics of pictures; without, an untrained network answers every picture alike."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(3):
            coarse = torch.randn(16, 3, 5, 5)
            smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
            module(smooth + torch.randn(16, 3, size, size))


def _save(folder: Path, model: nn.Module, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"model_cfg": config, "preprocess_cfg": _PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(record), encoding="utf-8")
    weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
