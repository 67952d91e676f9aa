"""Recall of queries among target representations, measured while the UNION head, or the fusion, trains.

Notation: t queries, N gallery size, E joint-embedding width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from asymcir_training.engine.execution import Rows, pick
from asymcir_training.foundation.digests import digest
from asymcir_training.models.transagg import TextPlaces, TransAgg
from asymcir_training.models.union_head import UnionHead
from asymcir_training.trainers.targets import represent_targets
from asymcir_training.triplets.ranking import measure_recall

_ROWS_AT_ONCE = 256
_QUERIES_AT_ONCE = 32


class TargetValidation:
    """Measures R@1, R@5 and R@10 of queries in a gallery of target representations.

    Attributes:
        digest: names what is asked, so that figures of other questions are not compared.
    """

    def __init__(
        self,
        *,
        image_features: Rows,
        null_features: Tensor,
        answers: Sequence[Sequence[int]],
        excluded: Sequence[Sequence[int]],
        target: str,
        device: torch.device,
    ) -> None:
        """Take a gallery and what is right in it.

        Args:
            image_features: [N, E], not normalised.
            null_features: [1, E], of the null text, not normalised.
            answers: t lists of rows, each of which is right.
            excluded: t lists of rows that are taken out of a query's ranking.
            target: see `represent_targets`.
            device: to compute on.
        """
        self._features, self._null = image_features, null_features.to(device)
        self._answers, self._excluded = answers, excluded
        self._target, self._device = target, device
        facts = {"answers": [[*rows] for rows in answers], "gallery": len(image_features), "target": target}
        self.digest = digest(weights={}, facts=facts)

    @torch.no_grad()
    def measure(self, queries: Tensor, head: UnionHead | None) -> dict[str, float]:
        """Measure queries [t, E], of any length, with a head in eval mode, or none where the target has none."""
        found = []
        for start in range(0, len(self._features), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(self._features)))
            features = pick(self._features, rows, self._device).float()
            found.append(represent_targets(features, self._null, self._target, head).float().cpu())
        asked = functional.normalize(queries.float().cpu(), dim=-1)
        return measure_recall(asked, torch.cat(found), self._answers, self._excluded)


class HeadValidation:
    """Measures a UNION head by queries [t, E] that stay as they are."""

    def __init__(self, validation: TargetValidation, queries: Tensor) -> None:
        self._validation, self._queries = validation, queries
        self.digest = validation.digest

    def __call__(self, head: UnionHead) -> dict[str, float]:
        """Measure a head in eval mode."""
        return self._validation.measure(self._queries, head)


class FusionValidation:
    """Measures a fusion, and its head if there is one, by triplets whose queries it makes."""

    def __init__(
        self,
        validation: TargetValidation,
        image_features: Tensor,
        patches: Rows,
        text: TextPlaces,
        references: Tensor,
        device: torch.device,
    ) -> None:
        """Take what `train_transagg` takes, of the triplets that are measured."""
        self._validation, self._features, self._patches = validation, image_features, patches
        self._text, self._references, self._device = text, references, device
        self.digest = validation.digest

    @torch.no_grad()
    def __call__(self, fusion: TransAgg, head: UnionHead | None) -> dict[str, float]:
        """Measure them in eval mode."""
        found = []
        for start in range(0, len(self._references), _QUERIES_AT_ONCE):
            rows = torch.arange(start, min(start + _QUERIES_AT_ONCE, len(self._references)))
            asked = self._references[rows]
            found.append(
                fusion(
                    self._features[asked].to(self._device),
                    pick(self._patches, asked.numpy(), self._device),
                    self._text.pick(rows).to(self._device),
                )
                .float()
                .cpu()
            )
        return self._validation.measure(torch.cat(found), head)
