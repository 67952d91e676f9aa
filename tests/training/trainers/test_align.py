from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from asymcir_common import Preprocessing
from asymcir_training import DataError, load_foundation
from asymcir_training.batches.views import Augmentation
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.trainers.align import AlignConfig, Wordings, align_visual_tower
from tiny_pictures import write_pictures
from torch import Tensor, nn
from torch.nn import functional

SPEC = Preprocessing(size=64, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
STILL = Augmentation(scale=(1.0, 1.0), shift=0.0, rotation_degrees=0.0, brightness=0.0)
CLASSES = 4


def _align(folder: Path, config: AlignConfig, steps: int) -> tuple[nn.Module, dict[str, Tensor], list[int]]:
    """Align a tiny tower; returns its trunk, how that started, and the side of every step's pictures."""
    torch.manual_seed(0)
    trunk = timm.create_model("test_efficientnet", num_classes=0)
    head = nn.Linear(trunk.num_features, 8)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    rng = np.random.default_rng(0)
    pictures = np.broadcast_to(rng.integers(0, 256, (16, 1, 1, 3)), (16, 64, 64, 3)).astype(np.uint8)
    sides: list[int] = []

    def encode(pixels: Tensor) -> Tensor:
        assert pixels.shape[2] == pixels.shape[3]
        sides.append(pixels.shape[2])
        return head(trunk(pixels))

    scale = align_visual_tower(
        trunk,
        head,
        encode=encode,
        preprocessing=SPEC,
        pictures=write_pictures(folder.parent / "pictures", pictures),
        kept=np.arange(16),
        labels=np.arange(16) % CLASSES,
        wordings=Wordings(functional.normalize(torch.randn(CLASSES * 2, 8), dim=-1), [2] * CLASSES),
        config=config,
        loop=LoopConfig(folder=folder, steps=steps, log_every=1),
    )
    assert 0.0 < scale <= config.largest_scale and not trunk.training
    return trunk, before, sides


def test_an_aligned_foundation_is_known_by_another_digest(clip_folder: Path, tmp_path: Path) -> None:
    foundation, other = (load_foundation(f"local-dir:{clip_folder}") for _ in range(2))
    tower, spec = foundation.model.visual.requires_grad_(True), foundation.preprocessing
    before, words = foundation.visual_digest(), foundation.word_space()
    shown = np.random.default_rng(0).integers(0, 256, (4, spec.size, spec.size, 3), dtype=np.uint8)
    align_visual_tower(
        tower,
        nn.Identity(),
        encode=foundation.encode_pixels,
        preprocessing=spec,
        pictures=write_pictures(tmp_path / "pictures", shown),
        kept=np.arange(4),
        labels=np.arange(4),
        wordings=Wordings(torch.randn(4, foundation.embedding_width), [1] * 4),
        config=AlignConfig(batch=4, augmentation=STILL),
        loop=LoopConfig(folder=tmp_path / "run", steps=1),
    )
    other.model.visual.load_state_dict(tower.state_dict())
    assert before != foundation.visual_digest() == other.visual_digest() and foundation.word_space() == words


def test_frozen_stages_stay_and_the_rest_is_aligned_with_styles_mixed(tmp_path: Path) -> None:
    config = AlignConfig(
        batch=8, frozen=("conv_stem", "bn1", "blocks.0"), mix_after=("blocks.0",), mix_share=0.5, augmentation=STILL
    )
    trunk, before, _ = _align(tmp_path, config, steps=3)
    frozen = ("conv_stem.", "bn1.", "blocks.0.")
    after = trunk.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith(frozen))
    for name in ("blocks.1.0.conv_exp.weight", "conv_head.weight", "bn2.running_mean"):
        assert not torch.equal(after[name], before[name]), name
    assert not any(part._forward_hooks for part in trunk.modules())


def test_first_steps_see_smaller_pictures_and_the_rest_whole_ones(tmp_path: Path) -> None:
    config = AlignConfig(batch=8, early_side=48, early_share=0.5, augmentation=STILL)
    assert _align(tmp_path / "early", config, steps=6)[2] == [48] * 3 + [64] * 3
    assert _align(tmp_path / "whole", AlignConfig(batch=8, augmentation=STILL), steps=2)[2] == [64] * 2


def test_a_share_of_smaller_pictures_needs_their_side() -> None:
    for name in ("mix_share", "early_share"):
        with pytest.raises(DataError, match=f"expected {name} from 0 to 1, got 1.5"):
            AlignConfig(early_side=32, **{name: 1.5})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="give early_side"):
        AlignConfig(early_share=0.5)


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    for config in (AlignConfig(frozen=("stem",)), AlignConfig(mix_after=("stem",))):
        with pytest.raises(DataError, match=r"no module stem; its parts are .*conv_stem"):
            _align(tmp_path, config, steps=1)
