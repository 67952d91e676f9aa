"""How good foundation and light encoder are while the recipe is searched: in torch, on one split, before any export.

The published figures come from the exported bundles (`asymcir eval emojicir`); these only choose between recipes, on
the dev split. The gallery is of type `original`, because no UNION head is there yet.

Notation: q queries, m gallery pictures, E joint-embedding width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from asymcir_benchmarks import Triplet, derive_triplets
from asymcir_training import Foundation, LightEncoder, normalise_pixels
from asymcir_training.teacher.in_memory import embed_pictures, embed_texts
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asymcir_demo.recipe.concepts import GALLERY_STYLE, HELD_OUT_STYLE, Concept
from asymcir_demo.recipe.foundation import word_names
from asymcir_demo.recipe.render import load_style
from asymcir_demo.recipe.splits import drawn_alike, show_change

_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSet:
    """One split's queries, and the gallery they search.

    Attributes:
        triplets: q composed queries.
        slugs: concepts that are asked for by their own picture.
        pictures: [p, S, S, 3] uint8, query pictures, of the places below.
        places: slug -> row of `pictures`.
        gallery: [m, E], L2-normalised.
        rows: slug -> row of the gallery.
        names: slug -> name in words.
    """

    triplets: list[Triplet]
    slugs: list[str]
    pictures: NDArray[np.uint8]
    places: dict[str, int]
    gallery: Tensor
    rows: dict[str, int]
    names: dict[str, str]

    @classmethod
    def load(
        cls,
        foundation: Foundation,
        pictures: Path,
        concepts: list[Concept],
        split: str,
        gallery: Tensor | None = None,
    ) -> "SearchSet":
        """Embed the gallery, unless it is given, and collect the queries of a split."""
        named = {concept.slug: concept for concept in concepts}
        shown, gallery_slugs = load_style(pictures, GALLERY_STYLE)
        drawn, drawn_slugs = load_style(pictures, HELD_OUT_STYLE)
        row_of, place_of = ({slug: i for i, slug in enumerate(slugs)} for slugs in (gallery_slugs, drawn_slugs))
        derived = derive_triplets({concept.slug: concept.name for concept in concepts})
        triplets = [
            triplet
            for triplet in show_change(derived, drawn_alike(pictures, GALLERY_STYLE))
            if named[triplet.target].split == split and triplet.target in row_of and triplet.reference in place_of
        ]
        slugs = [slug for slug in row_of if slug in place_of and slug in named and named[slug].split == split]
        if gallery is None:
            gallery = functional.normalize(embed_pictures(foundation, [shown]), dim=-1)
        wanted = sorted({triplet.reference for triplet in triplets} | set(slugs))
        return cls(
            triplets=triplets,
            slugs=slugs,
            pictures=np.stack([drawn[place_of[slug]] for slug in wanted]),
            places={slug: i for i, slug in enumerate(wanted)},
            gallery=gallery,
            rows=row_of,
            names={slug: word_names(concept)[0] for slug, concept in named.items()},
        )

    def measure_foundation(self, foundation: Foundation) -> dict[str, float]:
        """Measure the baselines: picture only, picture + text, the target's name, and a picture's own concept."""
        images = functional.normalize(embed_pictures(foundation, [self.pictures]), dim=-1)
        asked = images[[self.places[triplet.reference] for triplet in self.triplets]]
        typed = embed_texts(foundation, [triplet.modifier for triplet in self.triplets])
        names = embed_texts(foundation, [self.names[triplet.target] for triplet in self.triplets])
        own = images[[self.places[slug] for slug in self.slugs]]
        return {
            **self._composed("picture only", asked),
            **self._composed("picture + text", functional.normalize(asked + typed, dim=-1)),
            **self._composed("target's name", names),
            **self._own("picture", own),
        }

    @torch.no_grad()
    def measure_student(self, foundation: Foundation, student: LightEncoder) -> dict[str, float]:
        """Measure composed queries, and tokens alone."""
        tokens = torch.cat(
            [
                student(normalise_pixels(torch.from_numpy(self.pictures[i : i + _BATCH]), student.preprocessing))
                for i in range(0, len(self.pictures), _BATCH)
            ]
        )
        asked = tokens[[self.places[triplet.reference] for triplet in self.triplets]]
        composed = _compose(foundation, asked, [triplet.modifier for triplet in self.triplets])
        own = _compose(foundation, tokens[[self.places[slug] for slug in self.slugs]], None)
        return {**self._composed("composed", composed), **self._own("tokens", own)}

    def _composed(self, name: str, queries: Tensor) -> dict[str, float]:
        """Return R@1 and R@10, each the mean over families, the reference taken out of the gallery."""
        similarity = queries @ self.gallery.T  # [q, m]
        for number, triplet in enumerate(self.triplets):
            if triplet.reference in self.rows:
                similarity[number, self.rows[triplet.reference]] = -torch.inf
        ranks = _ranks(similarity, [self.rows[triplet.target] for triplet in self.triplets])
        families = np.array([triplet.family for triplet in self.triplets])
        found = {}
        for k in (1, 10):
            by_family = {family: float((ranks[families == family] <= k).mean()) for family in dict.fromkeys(families)}
            found[f"{name}, R@{k}"] = float(np.mean(list(by_family.values())))
            if k == 10:
                found |= {f"{name}, R@10, {family}": value for family, value in by_family.items()}
        return found

    def _own(self, name: str, queries: Tensor) -> dict[str, float]:
        ranks = _ranks(queries @ self.gallery.T, [self.rows[slug] for slug in self.slugs])
        return {f"{name} to its own concept, R@{k}": float((ranks <= k).mean()) for k in (1, 10)}


def _ranks(similarity: Tensor, answers: list[int]) -> NDArray[np.int64]:
    own = similarity[torch.arange(len(answers)), torch.tensor(answers)]
    ranks: NDArray[np.int64] = ((similarity > own[:, None]).sum(dim=1) + 1).numpy()
    return ranks


def _compose(foundation: Foundation, tokens: Tensor, modifiers: list[str] | None) -> Tensor:
    parts = []
    for start in range(0, len(tokens), _BATCH):
        part = slice(start, start + _BATCH)
        parts.append(foundation.compose_query(tokens[part], None if modifiers is None else modifiers[part]))
    return functional.normalize(torch.cat(parts), dim=-1)
