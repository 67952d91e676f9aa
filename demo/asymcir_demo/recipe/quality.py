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
from asymcir_training import Foundation, LightEncoder
from asymcir_training.pictures.sets import PictureSet, open_pictures
from asymcir_training.teacher.cache import build_teacher_cache
from asymcir_training.teacher.in_memory import embed_texts
from asymcir_training.triplets.validation import compose_queries
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asymcir_demo.recipe.concepts import GALLERY_STYLE, HELD_OUT_STYLE, Concept
from asymcir_demo.recipe.splits import drawn_alike, show_change
from asymcir_demo.recipe.wordings import word_names


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSet:
    """One split's queries, and the gallery they search.

    Attributes:
        triplets: q composed queries.
        slugs: concepts that are asked for by their own picture.
        pictures: the held-out style, where the queries are.
        places: slug -> number of its picture there.
        gallery: [m, E], L2-normalised.
        rows: slug -> row of the gallery.
        names: slug -> name in words.
    """

    triplets: list[Triplet]
    slugs: list[str]
    pictures: PictureSet
    places: dict[str, int]
    gallery: Tensor
    rows: dict[str, int]
    names: dict[str, str]

    @classmethod
    def load(cls, foundation: Foundation, work: Path, concepts: list[Concept], split: str, cache: Path) -> "SearchSet":
        """Collect the queries of a split and embed the gallery; `cache` keeps what the visual tower says."""
        named = {concept.slug: concept for concept in concepts}
        gallery, drawn = (open_pictures([work / "emoji/pictures" / style]) for style in (GALLERY_STYLE, HELD_OUT_STYLE))
        row_of, place_of = ({Path(key).stem: i for i, key in enumerate(found.keys)} for found in (gallery, drawn))
        derived = derive_triplets({concept.slug: concept.name for concept in concepts})
        return cls(
            triplets=[
                triplet
                for triplet in show_change(derived, drawn_alike(work / "pictures", GALLERY_STYLE))
                if named[triplet.target].split == split and triplet.target in row_of and triplet.reference in place_of
            ],
            slugs=[slug for slug in row_of if slug in place_of and slug in named and named[slug].split == split],
            pictures=drawn,
            places=place_of,
            gallery=_embed(foundation, gallery, cache),
            rows=row_of,
            names={slug: word_names(concept)[0] for slug, concept in named.items()},
        )

    def measure_foundation(self, foundation: Foundation, cache: Path) -> dict[str, float]:
        """Measure the baselines: picture only, picture + text, the target's name, and a picture's own concept."""
        images = _embed(foundation, self.pictures, cache)
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

    def measure_student(self, foundation: Foundation, student: LightEncoder) -> dict[str, float]:
        """Measure composed queries, and tokens alone."""
        asked = [(triplet.reference, triplet.modifier) for triplet in self.triplets]
        composed = self._ask(foundation, student, asked)
        own = self._ask(foundation, student, [(slug, "") for slug in self.slugs])
        return {**self._composed("composed", composed), **self._own("tokens", own)}

    def _ask(self, foundation: Foundation, student: LightEncoder, asked: list[tuple[str, str]]) -> Tensor:
        """Compose queries of a concept's picture and a change: [q, E], L2-normalised."""
        spec = student.preprocessing
        shown = list(dict.fromkeys(slug for slug, _ in asked))
        queries = compose_queries(
            student,
            foundation,
            np.stack([self.pictures.decode(self.places[slug], spec) for slug in shown]),
            np.array([shown.index(slug) for slug, _ in asked]),
            [change for _, change in asked],
            spec=spec,
            device=torch.device("cpu"),
        )
        return functional.normalize(queries, dim=-1)

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


def _embed(foundation: Foundation, pictures: PictureSet, cache: Path) -> Tensor:
    """Run the visual tower over pictures, all of which can be read: [n, E], L2-normalised."""
    found = build_teacher_cache(cache, foundation, pictures, patches=False).embedding
    return functional.normalize(torch.from_numpy(np.array(found)), dim=-1)
