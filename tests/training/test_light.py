import pytest
import torch
from asymcir_protos import Preprocessing
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
        assert model(torch.randn(2, 3, spec.size, spec.size)).shape == (2, 5, 48)


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


def test_each_token_reads_its_own_share_of_the_picture() -> None:
    torch.manual_seed(0)
    learner = AdaptiveTokenLearner(8, sentence_length=3, width=16, word_width=12).eval()
    with torch.no_grad():
        tokens = learner(torch.randn(1, 8, 4, 4))[0]
        same = learner(torch.randn(1, 8, 1, 1).expand(1, 8, 4, 4))[0]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-4  # different shares
    torch.testing.assert_close(same[0], same[1], rtol=1e-4, atol=1e-5)  # a flat picture has nothing to share out
