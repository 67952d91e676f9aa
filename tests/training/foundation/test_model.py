import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import preprocess
from asymcir_training import Foundation, FoundationError, UnionHead, load_foundation
from asymcir_training.foundation.model import needs_quick_gelu
from asymcir_training.foundation.text_towers import BlipTextTower
from asymcir_training.trainers.losses import local_alignment_regularization
from PIL import Image
from tiny_blip import write_blip
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH, write_bert, write_bidirectional, write_clip

TEXTS = ["a photo of a cat", "a red dog", "", "a photo of a blue cat that is a dog"]
_WRITERS = {"clip": write_clip, "bert": write_bert, "reads padding": write_bidirectional, "blip": write_blip}


@pytest.fixture(scope="module", params=list(_WRITERS))
def foundation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    folder = _WRITERS[request.param](tmp_path_factory.mktemp("foundation") / "x")
    return load_foundation(f"{'blip' if request.param == 'blip' else 'local-dir'}:{folder}")


@pytest.fixture(scope="module", params=["clip", "bert", "reads padding"])
def open_clip_foundation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foundation:
    return load_foundation(f"local-dir:{_WRITERS[request.param](tmp_path_factory.mktemp('foundation') / 'x')}")


def test_text_from_word_embeddings_equals_open_clips_own_text_encoder(open_clip_foundation: Foundation) -> None:
    foundation = open_clip_foundation
    expected = foundation.model.encode_text(foundation.open_clip_tokenizer(TEXTS))
    torch.testing.assert_close(foundation.encode_text(TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_images_equal_open_clips_own_preprocessing_and_encoder(open_clip_foundation: Foundation) -> None:
    import open_clip

    foundation = open_clip_foundation

    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    theirs = open_clip.image_transform(
        foundation.preprocessing.size,
        is_train=False,
        mean=foundation.preprocessing.mean,
        std=foundation.preprocessing.std,
        interpolation="bicubic",
    )(Image.fromarray(pixels))
    ours = foundation.normalise_pixels(torch.tensor(preprocess(pixels, foundation.preprocessing))[None])
    assert (ours[0] - theirs).abs().max() < 0.02  # one grey level
    with torch.no_grad():
        torch.testing.assert_close(
            foundation.encode_pixels(theirs[None]), foundation.model.encode_image(theirs[None]), rtol=1e-5, atol=1e-6
        )


def test_sentence_tokens_that_are_word_embeddings_give_the_text_of_those_words(foundation: Foundation) -> None:
    ids = foundation.tokenize("cat dog")
    tokens = foundation.word_embedding_table()[ids][None]
    composed = foundation.compose_query(tokens, ["is blue"])
    torch.testing.assert_close(
        composed, foundation.encode_text(["a photo of cat dog that is blue"]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        foundation.compose_query(tokens), foundation.encode_text(["a photo of cat dog"]), rtol=1e-4, atol=1e-5
    )


def test_composition_does_not_depend_on_the_batch(foundation: Foundation) -> None:
    tokens = torch.randn(3, 6, WORD_WIDTH, generator=torch.Generator().manual_seed(0))
    modifiers = ["is red", "", "is a blue dog that has a red cat"]
    together = foundation.compose_query(tokens, modifiers)
    for row, modifier in enumerate(modifiers):
        alone = foundation.compose_query(tokens[row : row + 1], [modifier])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def _encode_with_places(foundation: Foundation, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the text tower by hand: features [b, E], places [b, T, E], mask [b, T]."""
    rows = [[*foundation.start_ids, *foundation.tokenize(text), *foundation.end_ids] for text in texts]
    length = foundation.context_length if foundation.pads_to_context else max(map(len, rows))
    ids = torch.tensor([row + [foundation.pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    ends = torch.tensor([len(row) - 1 for row in rows])
    embeddings = foundation.word_embedding_table()[ids]
    features, places = foundation.text.encode_with_places(embeddings, mask, ends)
    torch.testing.assert_close(features, foundation.encode_words(embeddings, mask, ends))
    return features, places, mask


def test_features_are_pooled_from_the_places(foundation: Foundation) -> None:
    features, places, mask = _encode_with_places(foundation, ["a red dog", "a photo of a blue cat that is a dog"])
    assert places.shape == (2, mask.shape[1], EMBEDDING_WIDTH)
    if foundation.causal:
        pooled = places[torch.arange(2), mask.sum(dim=1) - 1]
    elif foundation.pads_to_context:
        pooled = places[:, -1]
    elif isinstance(foundation.text, BlipTextTower):
        pooled = places[:, 0]
    else:  # a mean over the words, without the padding; a linear projection commutes with it
        assert mask.min() == 0
        pooled = (places * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(features, pooled, rtol=1e-4, atol=1e-5)


def test_places_of_the_tokens_are_those_of_the_words_they_stand_for(foundation: Foundation) -> None:
    ids = foundation.tokenize("cat dog")
    tokens = foundation.word_embedding_table()[ids][None]
    start = len(foundation.start_ids) + len(foundation.tokenize("a photo of"))
    for modifiers, text in ((None, "a photo of cat dog"), (["is blue"], "a photo of cat dog that is blue")):
        features, places = foundation.compose_with_tokens(tokens, modifiers)
        assert places.shape == (1, len(ids), EMBEDDING_WIDTH)
        torch.testing.assert_close(features, foundation.compose_query(tokens, modifiers))
        expected_features, expected, _ = _encode_with_places(foundation, [text])
        torch.testing.assert_close(features, expected_features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(places, expected[:, start : start + len(ids)], rtol=1e-4, atol=1e-5)


def test_a_modifier_reaches_the_places_before_it_unless_the_tower_is_causal(foundation: Foundation) -> None:
    tokens = torch.randn(2, 6, WORD_WIDTH, generator=torch.Generator().manual_seed(0))
    plain = foundation.compose_with_tokens(tokens)[1]
    changed = foundation.compose_with_tokens(tokens, ["is red", "is a blue dog"])[1]
    assert torch.allclose(plain, changed, rtol=1e-4, atol=1e-5) is foundation.causal


def test_gradients_reach_the_tokens_through_their_places(foundation: Foundation) -> None:
    tokens = torch.randn(3, 6, WORD_WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, places = foundation.compose_with_tokens(tokens)
    local_alignment_regularization(places, torch.randn(3, 4, EMBEDDING_WIDTH), 20.0).backward()
    assert tokens.grad is not None and (tokens.grad.abs().sum(dim=2) > 0).all()
    assert all(parameter.grad is None for parameter in foundation.parameters())


def test_gradients_reach_the_tokens_and_nothing_of_the_foundation(foundation: Foundation) -> None:
    tokens = torch.randn(2, 6, WORD_WIDTH, requires_grad=True)
    foundation.compose_query(tokens, ["is red", ""]).square().sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in foundation.parameters())
    assert not foundation.train().model.training


def test_patches_lie_in_the_joint_space(foundation: Foundation) -> None:
    pixels = torch.randn(2, 3, foundation.preprocessing.size, foundation.preprocessing.size)
    patches = foundation.encode_patches(pixels)
    assert patches.ndim == 3 and patches.shape[0] == 2 and patches.shape[2] == EMBEDDING_WIDTH
    if hasattr(foundation.model.visual, "trunk"):  # average pooling and a linear head commute
        torch.testing.assert_close(patches.mean(dim=1), foundation.encode_pixels(pixels), rtol=1e-3, atol=1e-4)


def test_spaces_name_the_model(clip_folder: Path, bert_folder: Path) -> None:
    first, again = load_foundation(f"local-dir:{clip_folder}"), load_foundation(f"local-dir:{clip_folder}")
    other = load_foundation(f"local-dir:{bert_folder}")
    assert first.word_space() == again.word_space() != other.word_space()
    torch.manual_seed(0)
    head = UnionHead(EMBEDDING_WIDTH)
    spaces = first.target_spaces(head)
    assert sorted(spaces) == ["original", "sum", "union"] and len(set(spaces.values())) == 3
    assert spaces == again.target_spaces(head)
    with torch.no_grad():
        next(again.model.visual.parameters()).add_(1e-3)
        assert first.word_space() == again.word_space()
        assert all(spaces[target] != space for target, space in again.target_spaces(head).items())
        next(head.parameters()).add_(1e-3)
    changed = first.target_spaces(head)
    assert changed["union"] != spaces["union"] and changed["original"] == spaces["original"]


def test_digests_are_computed_once_and_again_after_a_change(clip_folder: Path) -> None:
    foundation = load_foundation(f"local-dir:{clip_folder}")
    word_space, visual = foundation.word_space(), foundation.visual_digest()
    assert foundation.word_space() is word_space and foundation.visual_digest() is visual  # not hashed again
    tower = foundation.model.visual.requires_grad_(True)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=0.1)
    side = foundation.preprocessing.size
    foundation.encode_pixels(torch.zeros(1, 3, side, side)).sum().backward()
    optimizer.step()
    trained = foundation.visual_digest()
    assert trained != visual and foundation.word_space() is word_space
    other = load_foundation(f"local-dir:{clip_folder}")
    other.model.visual.load_state_dict(tower.state_dict())
    assert other.visual_digest() == trained
    tower.load_state_dict(load_foundation(f"local-dir:{clip_folder}").model.visual.state_dict())
    assert foundation.visual_digest() == visual
    assert foundation.half().visual_digest() not in (visual, trained)  # rounded, it is another tower


def test_causal_or_not_is_read_from_the_model(clip_folder: Path, bert_folder: Path) -> None:
    assert load_foundation(f"local-dir:{clip_folder}").causal
    assert not load_foundation(f"local-dir:{bert_folder}").causal


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        ("ViT-L-41", "openai", "nearest: .*ViT-L-14"),
        ("ViT-B-32", None, "needs pretrained weights"),
        ("ViT-B-32", "no-such-tag", "cannot load the foundation"),
        ("local-dir:/nowhere/at/all", None, "cannot load the foundation"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(name: str, pretrained: str | None, words: str) -> None:
    with pytest.raises(FoundationError, match=words):
        load_foundation(name, pretrained)


@pytest.mark.parametrize(
    ("name", "tag", "needed"),
    [
        ("ViT-L-14", "openai", True),  # the tag says so, the architecture does not
        ("ViT-L-14", "laion2b_s32b_b82k", False),
        ("ViT-L-14-quickgelu", "openai", True),
        ("ViT-L-14", None, False),
    ],
)
def test_the_activation_is_the_one_that_the_weights_were_trained_with(name: str, tag: str | None, needed: bool) -> None:
    assert needs_quick_gelu(name, tag) is needed


def test_spaces_tell_activations_apart(clip_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "quick"
    shutil.copytree(clip_folder, other)
    record = json.loads((other / "open_clip_config.json").read_text())
    record["model_cfg"]["quick_gelu"] = True
    (other / "open_clip_config.json").write_text(json.dumps(record))
    plain, quick = load_foundation(f"local-dir:{clip_folder}"), load_foundation(f"local-dir:{other}")
    head = UnionHead(EMBEDDING_WIDTH)
    assert plain.word_space() != quick.word_space()
    assert plain.target_spaces(head)["original"] != quick.target_spaces(head)["original"]
    assert quick.name == "local-dir:quick"  # no path of a machine
