"""ISA's symmetric encoder: the large visual encoder's patches become sentence tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_training import CheckpointError, Foundation, FoundationError, load_foundation
from asymcir_training.models.checkpoints import load_light_encoder, load_symmetric_encoder, save_symmetric_encoder
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.trainers.losses import global_contrastive_distillation
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Foundation:
    return load_foundation(f"local-dir:{clip_folder}")


def _encoder(foundation: Foundation) -> SymmetricEncoder:
    torch.manual_seed(0)
    return SymmetricEncoder.of_foundation(foundation, sentence_length=3, width=32)


def _pixels(foundation: Foundation, count: int) -> torch.Tensor:
    side = foundation.preprocessing.size
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    return foundation.normalise_pixels(torch.from_numpy(pixels))


def test_pixels_and_cached_patches_give_the_same_tokens(foundation: Foundation) -> None:
    encoder = _encoder(foundation).eval()
    pixels = _pixels(foundation, 5)
    tokens = encoder(pixels)
    assert list(tokens.shape) == [5, 3, WORD_WIDTH] and encoder.preprocessing == foundation.preprocessing
    cached = foundation.encode_patches(pixels).half()
    torch.testing.assert_close(encoder.from_patches(cached), tokens, rtol=2e-2, atol=2e-3)
    assert tokens.std(dim=0).mean() > 0  # other pictures, other tokens


def test_only_the_token_learner_is_its_own(clip: Foundation, tmp_path: Path) -> None:
    encoder = _encoder(clip)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"token_learner"}
    save_symmetric_encoder(tmp_path / "s", encoder, {"word_space": clip.word_space(), "foundation": clip.name})
    loaded, metadata = load_symmetric_encoder(tmp_path / "s")
    assert metadata["word_space"] == clip.word_space()
    pixels = _pixels(clip, 2)
    with pytest.raises(FoundationError, match="attach the foundation"):
        loaded(pixels)
    torch.testing.assert_close(loaded.attach(clip)(pixels), encoder.eval()(pixels))
    with pytest.raises(CheckpointError, match="light-encoder"):
        load_light_encoder(tmp_path / "s")


def test_widths_are_checked(clip: Foundation) -> None:
    encoder = _encoder(clip)
    with pytest.raises(FoundationError, match=rf"patches \[b, P, {EMBEDDING_WIDTH}\]"):
        encoder.from_patches(torch.zeros(2, 4, EMBEDDING_WIDTH + 1))
    other = SymmetricEncoder(
        patch_width=8, sentence_length=2, word_width=WORD_WIDTH, width=16, preprocessing=clip.preprocessing
    )
    with pytest.raises(FoundationError, match="expected the foundation of patches 8"):
        other.attach(clip)
    with pytest.raises(FoundationError, match="heads divide"):
        SymmetricEncoder.of_foundation(clip, width=12)


def test_it_learns_to_say_what_the_teacher_saw(clip: Foundation) -> None:
    encoder, pixels = _encoder(clip), _pixels(clip, 12)
    with torch.no_grad():
        patches, teacher = clip.encode_patches(pixels), clip.encode_pixels(pixels)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)

    def loss() -> torch.Tensor:
        return global_contrastive_distillation(clip.compose_query(encoder.from_patches(patches)), teacher, 20.0)

    first = loss().item()
    for _ in range(40):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert loss().item() < 0.5 * first
