import math

import torch
from asymcir_training.trainers.losses import (
    composition_consistency,
    contrast,
    global_contrastive_distillation,
    local_alignment_regularization,
    similarity_distillation,
    token_redundancy,
)
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


def test_local_alignment_equals_the_definition_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [3.0, 0.0]]])
    patches = torch.tensor([[[5.0, 0.0], [0.6, 0.8]], [[-1.0, 0.0], [0.0, 1.0]]])
    # Best patch of each token, sentence by image: (1 + 0.8) / 2 and (0 + 1) / 2, for the second sentence alike.
    fits = [[0.9, 0.5], [0.9, 0.5]]
    own = [math.exp(10 * fits[i][i]) for i in range(2)]
    by_sentence = -sum(math.log(own[i] / sum(math.exp(10 * fit) for fit in fits[i])) for i in range(2)) / 2
    by_image = -sum(math.log(own[j] / sum(math.exp(10 * row[j]) for row in fits)) for j in range(2)) / 2
    assert abs(by_sentence - by_image) > 0.1
    found = float(local_alignment_regularization(tokens, patches, 10.0))
    assert abs(found - 0.5 * (by_sentence + by_image)) < 1e-5


def test_local_alignment_is_lower_for_sentences_of_the_same_images_and_moves_tokens_there() -> None:
    torch.manual_seed(0)
    patches = torch.randn(8, 5, 16)
    tokens = (patches[:, :3] * 2.0 + 0.1 * torch.randn(8, 3, 16)).requires_grad_()
    matching = local_alignment_regularization(tokens, patches, 20.0)
    shuffled = local_alignment_regularization(tokens, patches.roll(1, 0), 20.0)
    assert matching < 0.1 < 1.0 < shuffled
    shuffled.backward()
    assert tokens.grad is not None and (tokens.grad.abs().sum(dim=2) > 0).all()  # every token, not the best alone
    with torch.no_grad():
        after = local_alignment_regularization(tokens - tokens.grad, patches.roll(1, 0), 20.0)
    assert after < shuffled


def test_similarity_distillation_equals_the_definition_and_is_zero_where_sentence_and_picture_agree() -> None:
    torch.manual_seed(0)
    said, seen = torch.randn(3, 8), torch.randn(3, 8)
    others = functional.normalize(torch.randn(5, 8), dim=-1)
    expected = 0.0
    for i in range(3):
        found, asked = (
            [math.exp(10 * float(functional.cosine_similarity(rows[i], other, dim=0))) for other in others]
            for rows in (said, seen)
        )
        expected += sum(
            a / sum(asked) * math.log(a / sum(asked) / (f / sum(found))) for a, f in zip(asked, found, strict=True)
        )
    assert abs(float(similarity_distillation(said, seen, others, 10.0)) - expected / 3) < 1e-5
    assert abs(float(similarity_distillation(seen * 3.0, seen, others, 10.0))) < 1e-5


def test_redundancy_is_of_what_tokens_say_about_the_picture_and_not_of_what_they_always_say() -> None:
    torch.manual_seed(0)
    said = torch.randn(16, 1, 12)
    constant = 5.0 * torch.randn(3, 12)
    assert abs(float(token_redundancy(said * torch.tensor([1.0, 2.0, -0.5])[:, None] + constant)) - 1.0) < 1e-4
    apart = torch.zeros(16, 3, 12)
    for number in range(3):
        apart[:, number, 4 * number : 4 * number + 4] = torch.randn(16, 4)
    assert float(token_redundancy(apart)) < 1e-6
