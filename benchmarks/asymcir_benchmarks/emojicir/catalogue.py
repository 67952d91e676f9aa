"""What the gallery's pictures show: which of them answer a query, and which are the query's own concept.

A concept may have several pictures (one a style), and the sets reuse drawings: two pictures that are the same to the
pixel cannot be told apart by any method, so whichever comes first is right.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from asymcir_benchmarks.emojicir.rows import read_rows
from asymcir_benchmarks.errors import BenchmarkError


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryPicture:
    """One picture of the gallery.

    Attributes:
        id: as search answers name it.
        concept: what it shows; several pictures may show one.
        name: the concept's.
        figure: the name without skin tone, which a sketch does not show.
        drawing: digest of the pixels.
    """

    id: str
    concept: str
    name: str
    figure: str
    drawing: str


class Catalogue:
    """The pictures of a gallery, found by concept, figure and drawing."""

    def __init__(self, pictures: Iterable[GalleryPicture]) -> None:
        """Index the pictures."""
        self._of_concept: dict[str, list[GalleryPicture]] = {}
        self._of_figure: dict[str, set[str]] = {}
        self._of_drawing: dict[str, set[str]] = {}
        for picture in pictures:
            self._of_concept.setdefault(picture.concept, []).append(picture)
            self._of_figure.setdefault(picture.figure, set()).add(picture.id)
            self._of_drawing.setdefault(picture.drawing, set()).add(picture.id)

    @classmethod
    def read(cls, path: Path) -> "Catalogue":
        """Read the list that the gallery is built from; a row's concept is its id where it names none.

        Raises:
            BenchmarkError: no such file, or a row without id, name, figure or drawing.
        """
        rows = read_rows(path, ("id", "name", "figure", "drawing"))
        return cls(
            GalleryPicture(
                id=row["id"],
                concept=str(row.get("concept", row["id"])),
                name=row["name"],
                figure=row["figure"],
                drawing=row["drawing"],
            )
            for row in rows
        )

    def __contains__(self, concept: object) -> bool:
        """Say whether the gallery has a picture of the concept."""
        return concept in self._of_concept

    def name(self, concept: str) -> str:
        """Return the concept's name."""
        return self._pictures(concept)[0].name

    def pictures_of(self, concept: str) -> frozenset[str]:
        """Return the ids of every picture of a concept; none where the gallery has none."""
        return frozenset(picture.id for picture in self._of_concept.get(concept, ()))

    def answers(self, concept: str) -> frozenset[str]:
        """Return the ids that answer a query for a concept: its pictures, and those that are the same drawing."""
        return frozenset().union(*(self._of_drawing[picture.drawing] for picture in self._pictures(concept)))

    def same_figure(self, concept: str) -> frozenset[str]:
        """Return the ids of every picture of the concept's figures, in any skin tone."""
        return frozenset().union(*(self._of_figure[picture.figure] for picture in self._pictures(concept)))

    def _pictures(self, concept: str) -> list[GalleryPicture]:
        if concept not in self._of_concept:
            raise BenchmarkError(
                f"the gallery has no picture of {concept!r}: expected one in its list, for a query that asks for it"
            )
        return self._of_concept[concept]
