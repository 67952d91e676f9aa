import pytest
import torch
from asymcir_common import Preprocessing
from asymcir_training import AdaptiveTokenLearner, FoundationError, LightEncoder

SPEC = Preprocessing(size=64, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    "backbone", ["mobilenetv3_small_050", "tf_efficientnet_lite0", "fastvit_t8", "vit_tiny_patch16_224"]
)
def test_backbones_of_several_kinds_give_tokens(backbone: str) -> None:
    spec = (
        Preprocessing(size=224, interpolation="bilinear", mean=SPEC.mean, std=SPEC.std) if "vit_" in backbone else SPEC
    )
    model = LightEncoder(backbone, sentence_length=5, word_width=48, width=64, preprocessing=spec).eval()
    with torch.no_grad():
        pixels = torch.randn(2, 3, spec.size, spec.size)
        tokens, maps = model.forward_with_maps(pixels)
        assert tokens.shape == (2, 5, 48) and maps.shape == (2, 5, *model.feature_map(pixels).shape[2:])
        torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 5))
        torch.testing.assert_close(model(pixels), tokens)


def test_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(FoundationError, match="mobilenetv3_small_050"):
        LightEncoder("mobilenetv3_smal_050", word_width=48, preprocessing=SPEC)


def test_tokens_start_where_words_live() -> None:
    torch.manual_seed(0)
    learner = AdaptiveTokenLearner(8, sentence_length=3, width=16, word_width=12).eval()
    table = torch.randn(100, 12) * 0.05 + 0.3
    learner.anchor_to_words(table)
    with torch.no_grad():
        tokens = learner(torch.randn(4, 8, 4, 4))
    assert (tokens - table.mean(dim=0)).abs().max() < 4 * table.std()


def test_each_token_starts_in_a_region_of_its_own() -> None:
    torch.manual_seed(0)
    learner = AdaptiveTokenLearner(8, sentence_length=3, width=16, word_width=12)
    centres = torch.eye(12)[:3] * 5.0
    table = torch.cat([centre + torch.randn(40, 12) * 0.1 for centre in centres])
    learner.anchor_to_words(table)
    assert sorted(torch.cdist(learner.word_means, centres).argmin(dim=1).tolist()) == [0, 1, 2]
    with pytest.raises(FoundationError, match="3 or more words"):
        learner.anchor_to_words(table[:2])


def test_each_token_reads_its_own_share_of_the_picture() -> None:
    torch.manual_seed(0)
    learner = AdaptiveTokenLearner(8, sentence_length=3, width=16, word_width=12).eval()
    with torch.no_grad():
        tokens, maps = learner.attend(torch.randn(2, 8, 4, 5))
        _, flat = learner.attend(torch.randn(1, 8, 1, 1).expand(1, 8, 4, 5))
    assert tokens.shape == (2, 3, 12)
    assert maps.shape == (2, 3, 4, 5)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 3))
    assert (maps[:, 0] - maps[:, 1]).abs().max() > 0.02  # different shares
    torch.testing.assert_close(flat, torch.full((1, 3, 4, 5), 1 / 20))  # a flat picture has nothing to share out


def test_a_group_that_is_small_everywhere_keeps_its_weights_in_half_precision() -> None:
    torch.manual_seed(0)
    learner = AdaptiveTokenLearner(8, sentence_length=3, width=16, word_width=12).eval()
    with torch.no_grad():
        learner.groups.bias[1] -= 30.0  # its share of each location is e^-30, far below what fp16 holds
        features = torch.randn(2, 8, 4, 4)
        tokens = learner(features)
        x = learner.map_norm(learner.project(features).flatten(2).transpose(1, 2)).double()  # [b, h*w, d]
        logits = x @ learner.groups.weight.double().T + learner.groups.bias.double()
        attention = logits.softmax(dim=2).transpose(1, 2)  # [b, L, h*w], over the groups, as it is meant
        weights = attention / attention.sum(dim=2, keepdim=True)
        expected = learner.double()(features.double())
        torch.testing.assert_close(tokens.double(), expected, rtol=1e-4, atol=1e-5)
        means = learner.token_embeddings.double() + weights @ x
        found: list[torch.Tensor] = []
        hook = learner.self_norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        learner.half()(features.half())
        hook.remove()
    torch.testing.assert_close(found[0].double(), means, rtol=0.02, atol=5e-3)
