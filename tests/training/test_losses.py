import math

import torch
from asymcir_training.losses import composition_consistency, contrast, global_contrastive_distillation
from torch.nn import functional


def test_contrast_equals_the_definition_with_several_positives() -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(4, 8), torch.randn(6, 8)
    positives = torch.zeros(4, 6, dtype=torch.bool)
    positives[0, 1] = positives[0, 2] = positives[1, 0] = positives[2, 5] = positives[3, 3] = True
    expected = 0.0
    for i in range(4):
        cosines = [float(functional.cosine_similarity(queries[i], candidates[j], dim=0)) for j in range(6)]
        total = math.log(sum(math.exp(10 * cosine) for cosine in cosines))
        right = [j for j in range(6) if positives[i, j]]
        expected += sum(total - 10 * cosines[j] for j in right) / len(right) / 4
    assert abs(float(contrast(queries, candidates, positives, 10.0)) - expected) < 1e-4


def test_distillation_is_least_where_text_and_image_agree() -> None:
    torch.manual_seed(0)
    image = torch.randn(16, 32)
    agreeing = global_contrastive_distillation(image * 3.0, image, 20.0)
    shuffled = global_contrastive_distillation(image.roll(1, 0), image, 20.0)
    assert agreeing < 0.1 < shuffled


def test_consistency_is_near_zero_for_equal_features_and_moves_apart_ones_together() -> None:
    torch.manual_seed(0)
    described = torch.randn(16, 32)
    assert composition_consistency(described, described, 20.0) < 0.1
    composed = torch.randn(16, 32, requires_grad=True)
    composition_consistency(composed, described, 20.0).backward()
    with torch.no_grad():
        before = functional.cosine_similarity(composed, described).mean()
        after = functional.cosine_similarity(composed - 10.0 * composed.grad, described).mean()
    assert after > before
