"""Tiny random foundations, saved as local open_clip folders: one causal CLIP, one with a bidirectional BERT text tower."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

WIDTH = 32
SIZE = 32
_MEAN, _STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "that", "is", "has", "blue", "red", "cat", "dog")


def write_clip(folder: Path) -> Path:
    """Write a causal CLIP with a transformer visual tower and open_clip's own tokenizer."""
    vision = {"image_size": SIZE, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2}
    return _write(folder, vision, text, open_clip.CLIP)


def write_bert(folder: Path) -> Path:
    """Write a foundation with a timm visual tower and a random BERT text tower of few words."""
    from transformers import BertConfig, BertModel

    tower = folder / "text"
    tower.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = list(dict.fromkeys([*_WORDS, *letters, *(f"##{letter}" for letter in letters)]))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tower)
    for place in (tower, folder):
        _write_bert_tokenizer(place, vocabulary)
    vision = {
        "timm_model_name": "mobilenetv2_035",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": SIZE,
    }
    text = {
        "hf_model_name": str(tower),
        "hf_tokenizer_name": str(tower),
        "hf_model_pretrained": True,
        "hf_proj_type": None,
        "hf_pooler_type": "mean_pooler",
        "context_length": 40,
        "width": WIDTH,
    }
    return _write(folder, vision, text, open_clip.CustomTextCLIP)


def _write_bert_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    record = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(record), encoding="utf-8")


def _write(folder: Path, vision: dict[str, Any], text: dict[str, Any], kind: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": _MEAN, "std": _STD, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    model = kind(WIDTH, vision, text)
    weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
