"""Validation of target representations against ranks counted by hand."""

import numpy as np
import pytest
import torch
from asymcir_training.models.union_head import UnionHead
from asymcir_training.trainers.target_validation import HeadValidation, TargetValidation
from asymcir_training.trainers.targets import TARGETS, represent_targets
from torch.nn import functional

WIDTH, COUNT, QUERIES = 32, 300, 40


@pytest.mark.parametrize("target", TARGETS)
def test_recall_is_that_of_ranks_counted_by_hand(target: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features, null = torch.randn(COUNT, WIDTH, generator=generator), torch.randn(1, WIDTH, generator=generator)
    torch.manual_seed(0)
    head = UnionHead(WIDTH).eval() if target == "union" else None
    with torch.no_grad():
        gallery = represent_targets(features, null, target, head)
    answers, excluded = [[7 * i % COUNT] for i in range(QUERIES)], [[(7 * i + 3) % COUNT] for i in range(QUERIES)]
    queries = gallery[[rows[0] for rows in answers]] + 0.25 * torch.randn(QUERIES, WIDTH, generator=generator)
    ranks = []
    for query, (right,), (out,) in zip(functional.normalize(queries, dim=-1), answers, excluded, strict=True):
        scores = (gallery @ query).numpy()
        scores[out] = -2.0
        ranks.append(1 + int((scores > scores[right]).sum()))
    validation = TargetValidation(
        image_features=features.numpy(),
        null_features=null,
        answers=answers,
        excluded=excluded,
        target=target,
        device=torch.device("cpu"),
    )
    found = validation.measure(queries, head)
    assert found == {f"R@{k}": pytest.approx(float((np.array(ranks) <= k).mean())) for k in (1, 5, 10)}
    assert len(set(ranks)) > 1
    if head is not None:
        assert HeadValidation(validation, queries)(head) == found
