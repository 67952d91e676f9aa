"""The stages on tiny models: each must learn what it is for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_training import (
    CheckpointError,
    DataError,
    FoundationError,
    LightEncoder,
    UnionHead,
    load_foundation,
    load_light_encoder,
    load_union_head,
    save_light_encoder,
    save_union_head,
)
from asymcir_training.batches.views import Augmentation, augment, batch_at
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.trainers.distil import DistilConfig, distil
from asymcir_training.trainers.union import UnionConfig, train_union_head
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH
from tiny_pictures import write_pictures
from torch.nn import functional

SPEC = Preprocessing(size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STILL = Augmentation(scale=(1.0, 1.0), shift=0.0, rotation_degrees=0.0, brightness=0.0)


def _pictures(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([np.broadcast_to(rng.integers(0, 256, 3), (32, 32, 3)) for _ in range(count)]).astype(np.uint8)


def test_distillation_brings_the_tokens_sentence_to_its_image(bert_folder: Path, tmp_path: Path) -> None:
    foundation = load_foundation(f"local-dir:{bert_folder}")
    pictures = write_pictures(tmp_path / "pictures", _pictures(32))
    teacher = torch.from_numpy(np.random.default_rng(1).normal(size=(32, EMBEDDING_WIDTH))).float()
    torch.manual_seed(0)
    student = LightEncoder(
        "mobilenetv3_small_050", sentence_length=4, word_width=WORD_WIDTH, width=32, preprocessing=SPEC
    )
    before = {name: value.clone() for name, value in foundation.state_dict().items()}
    config = DistilConfig(batch=16, backbone_lr=3e-3, token_learner_lr=5e-3, augmentation=STILL, identity_weight=0.0)
    loop = LoopConfig(folder=tmp_path, steps=60, log_every=10)
    distil(
        student,
        foundation,
        pictures=pictures,
        kept=np.arange(32),
        teacher=teacher,
        phrases=["cat", "dog", "red cat"],
        modifiers=["is blue", "is red"],
        config=config,
        loop=loop,
    )
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    first, last = (float(line.split('"gcd": ')[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert last < first - 0.2
    assert all(torch.equal(before[name], value) for name, value in foundation.state_dict().items())


def test_union_training_learns_to_use_the_null_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    null = torch.randn(1, EMBEDDING_WIDTH)
    images = torch.randn(64, EMBEDDING_WIDTH)
    # Queries stand half way to the null text: g = 0.5 is right, g = 1 (the picture alone) is not.
    queries = functional.normalize(0.5 * images + 0.5 * null + 0.1 * torch.randn(64, EMBEDDING_WIDTH), dim=-1)
    head = UnionHead(EMBEDDING_WIDTH)
    train_union_head(
        head,
        queries=queries,
        image_features=images,
        null_features=null,
        targets=torch.arange(64),
        answers=torch.arange(64),
        config=UnionConfig(lr=1e-3),
        loop=LoopConfig(folder=tmp_path, steps=60),
    )
    with torch.no_grad():
        target, gate = head(images, null.expand(64, -1))
    learned = (queries * target).sum(dim=1).mean()
    original = (queries * functional.normalize(images, dim=-1)).sum(dim=1).mean()
    assert learned > original
    assert 0.2 < gate.mean() < 0.9


def test_union_training_refuses_shapes_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one target per query"):
        train_union_head(
            UnionHead(EMBEDDING_WIDTH),
            queries=torch.zeros(3, EMBEDDING_WIDTH),
            image_features=torch.zeros(4, EMBEDDING_WIDTH),
            null_features=torch.zeros(1, EMBEDDING_WIDTH),
            targets=torch.zeros(2, dtype=torch.long),
            answers=torch.zeros(4, dtype=torch.long),
            config=UnionConfig(),
            loop=LoopConfig(folder=tmp_path, steps=1),
        )


def test_checkpoints_come_back_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = LightEncoder(
        "mobilenetv3_small_050", sentence_length=4, word_width=12, width=16, preprocessing=SPEC
    ).eval()
    save_light_encoder(tmp_path / "light", student, {"word_space": "w", "foundation": "f"})
    again, metadata = load_light_encoder(tmp_path / "light")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), student(x))
    assert metadata == {"word_space": "w", "foundation": "f"} and again.preprocessing == SPEC
    head = UnionHead(16).eval()
    save_union_head(tmp_path / "union", head, {"foundation": "f"})
    save_union_head(tmp_path / "union", head, {"foundation": "f"})  # over the old one
    assert torch.equal(load_union_head(tmp_path / "union")[0].gate[0].weight, head.gate[0].weight)
    with pytest.raises(CheckpointError, match="kind"):
        load_union_head(tmp_path / "light")
    with pytest.raises(CheckpointError, match="found none"):
        load_union_head(tmp_path / "nowhere")
    (tmp_path / "union" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        load_union_head(tmp_path / "union")


def test_batches_cover_every_picture_once_an_epoch_and_follow_from_the_step() -> None:
    epoch = np.concatenate([batch_at(20, 5, seed=3, number=number) for number in range(4)])
    assert sorted(epoch) == list(range(20))
    assert (batch_at(20, 5, seed=3, number=5) == batch_at(20, 5, seed=3, number=5)).all()
    assert (batch_at(20, 5, seed=3, number=0) != batch_at(20, 5, seed=3, number=4)).any()


def test_augmentation_without_freedom_changes_nothing() -> None:
    pixels = torch.rand(2, 3, 16, 16) * 255
    torch.testing.assert_close(augment(pixels, STILL), pixels, rtol=1e-4, atol=1e-2)
    assert (augment(pixels, Augmentation()) - pixels).abs().max() > 1.0


def test_a_run_with_other_inputs_does_not_take_the_finished_one_for_its_own(tmp_path: Path) -> None:
    def train(*, lr: float = 1e-4, shift: float = 0.0) -> None:
        torch.manual_seed(0)
        head = UnionHead(EMBEDDING_WIDTH)
        features = torch.randn(8, EMBEDDING_WIDTH)
        train_union_head(
            head,
            queries=features + shift,
            image_features=features,
            null_features=torch.ones(1, EMBEDDING_WIDTH),
            targets=torch.arange(8),
            answers=torch.arange(8),
            config=UnionConfig(batch=4, lr=lr),
            loop=LoopConfig(folder=tmp_path, steps=2),
        )

    train()
    train()  # the same run: taken as done
    with pytest.raises(CheckpointError, match="differs in inputs"):
        train(shift=0.5)
    with pytest.raises(CheckpointError, match="differs in config"):
        train(lr=1e-3)


def test_wrong_arguments_name_what_was_expected() -> None:
    with pytest.raises(DataError, match="batch of 1 or more"):
        DistilConfig(batch=0)
    with pytest.raises(FoundationError, match="heads divide"):
        LightEncoder("mobilenetv3_small_050", word_width=8, width=100, preprocessing=SPEC)
