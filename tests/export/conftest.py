"""Small random models of every kind: a causal CLIP, a bidirectional Hugging Face tower, a light encoder, a UNION head."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_protos import Preprocessing
from asymcir_training import Foundation, LightEncoder, UnionHead, load_foundation
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

PICTURE_SIZES = ((64, 64), (90, 41), (33, 120), (150, 150), (47, 48), (200, 96))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate(PICTURE_SIZES):
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index}.png")
    (folder / "not-a-picture.png").write_bytes(b"\x89PNG nothing")
    return folder


@pytest.fixture(scope="session")
def light_encoder() -> LightEncoder:
    torch.manual_seed(0)
    spec = Preprocessing(size=64, interpolation="bilinear", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    encoder = LightEncoder("mobilenetv3_small_050", word_width=48, width=64, preprocessing=spec)
    _calibrate(encoder, 64)
    return encoder.eval()


@pytest.fixture(scope="session")
def causal_foundation(tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    torch.manual_seed(1)
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
    }
    return load_foundation(_save(tmp_path_factory.mktemp("causal"), CLIP(**config), config))


@pytest.fixture(scope="session")
def bert_foundation(tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("bert")
    letters = [character for character in string.printable if not character.isspace()]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in string.ascii_lowercase),
    ]
    vocabulary = {
        piece: index for index, piece in enumerate([*pieces, "photo", "that", "of", "red", "##ing", "中", "é"])
    }
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder / "tower")
    config = {
        "embed_dim": 32,
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
    model = CustomTextCLIP(**config)
    _calibrate(model.visual, 64)
    return load_foundation(_save(folder, model, config))


@pytest.fixture(scope="session")
def union_head() -> UnionHead:
    torch.manual_seed(3)
    return UnionHead(32).eval()


def _calibrate(module: nn.Module, size: int) -> None:
    """Give batch norms the statistics of pictures; without, an untrained network answers every picture alike."""
    module.train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, 3, 1, 1) + 0.3 * torch.randn(16, 3, size, size))


def _save(folder: Path, model: nn.Module, config: dict[str, object]) -> str:
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    weights = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
