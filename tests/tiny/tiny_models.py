"""Fixtures: small random models of every kind: a causal CLIP, a bidirectional BERT tower, a light encoder, UNION."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_export import write_coreml
from asymcir_training import Foundation, LightEncoder, UnionHead, load_foundation
from PIL import Image
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH, calibrate, write_bert, write_bidirectional, write_clip

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
    encoder = LightEncoder("mobilenetv3_small_050", word_width=WORD_WIDTH, width=64, preprocessing=spec)
    calibrate(encoder, 64)
    return encoder.eval()


@pytest.fixture(scope="session")
def coreml_package(tmp_path_factory: pytest.TempPathFactory, light_encoder: LightEncoder) -> Path:
    path = tmp_path_factory.mktemp("coreml") / "encoder.mlpackage"
    write_coreml(light_encoder, light_encoder.preprocessing, path)
    return path


@pytest.fixture(scope="session")
def causal_foundation(tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    return load_foundation(f"local-dir:{write_clip(tmp_path_factory.mktemp('causal'))}")


@pytest.fixture(scope="session")
def bert_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_bert(tmp_path_factory.mktemp('bert'))}"


@pytest.fixture(scope="session")
def bert_foundation(bert_name: str) -> Foundation:
    return load_foundation(bert_name)


@pytest.fixture(scope="session")
def padded_foundation(tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    return load_foundation(f"local-dir:{write_bidirectional(tmp_path_factory.mktemp('padded'))}")


@pytest.fixture(scope="session")
def union_head() -> UnionHead:
    torch.manual_seed(3)
    return UnionHead(EMBEDDING_WIDTH).eval()
