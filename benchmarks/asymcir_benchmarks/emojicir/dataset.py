"""EmojiCIR on disk: queries, sketches and gallery below one folder, each with its split.

| file | rows |
|---|---|
| `triplets.jsonl` | reference, modifier, target, family, split |
| `identity.jsonl` | slug, split: query pictures that are asked for by themselves |
| `sketches.jsonl` | slug, split: concepts with line art and the same in colour |
| `gallery/gallery.jsonl` | path, id, name, group, split, figure, drawing, and concept where that is not the id |
| `queries.zip`, `sketches.zip`, `coloured.zip`, or folders of these names | pictures, SLUG.webp |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asymcir_common.places import PathReader

from asymcir_benchmarks.emojicir.catalogue import Catalogue
from asymcir_benchmarks.emojicir.evaluate import read_triplets
from asymcir_benchmarks.emojicir.rows import read_rows
from asymcir_benchmarks.emojicir.rules import Triplet
from asymcir_benchmarks.errors import BenchmarkError

SPLITS = ("dev", "test", "novel")
"""`dev` chooses the recipe, `test` and `novel` are published; rows of any other split are for show."""

SUFFIX = ".webp"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmojiCir:
    """The data set.

    Attributes:
        folder: holds the files above.
        catalogue: of the gallery.
        triplets: split -> composed queries.
        identity: split -> slugs of query pictures that are asked for by themselves.
        sketches: split -> slugs of concepts with line art.
    """

    folder: Path
    catalogue: Catalogue
    triplets: dict[str, list[Triplet]]
    identity: dict[str, list[str]]
    sketches: dict[str, list[str]]

    @classmethod
    def load(cls, folder: Path) -> "EmojiCir":
        """Read the data set.

        Raises:
            BenchmarkError: a file is not there or not what it should be, or a query asks for what the gallery lacks.
        """
        triplets: dict[str, list[Triplet]] = {}
        for triplet in read_triplets(folder / "triplets.jsonl"):
            triplets.setdefault(triplet.split, []).append(triplet)
        found = cls(
            folder=folder,
            catalogue=Catalogue.read(folder / "gallery" / "gallery.jsonl"),
            triplets=triplets,
            identity=_slugs_by_split(folder / "identity.jsonl"),
            sketches=_slugs_by_split(folder / "sketches.jsonl"),
        )
        found._check()
        return found

    @property
    def gallery_list(self) -> Path:
        """What the galleries are built from."""
        return self.folder / "gallery" / "gallery.jsonl"

    def require(self, splits: Sequence[str]) -> None:
        """Check that there are composed queries of each split.

        Raises:
            BenchmarkError: there are none.
        """
        for split in splits:
            if not self.triplets.get(split):
                held = ", ".join(sorted(name for name in self.triplets if name)) or "none"
                raise BenchmarkError(f"{self.folder} has no composed queries of the split {split!r}: it has {held}")

    def query(self, slug: str) -> Path:
        """Return the query picture of a concept."""
        return picture_place(self.folder, "queries") / f"{slug}{SUFFIX}"

    def sketch(self, slug: str) -> Path:
        """Return the line art of a concept."""
        return picture_place(self.folder, "sketches") / f"{slug}{SUFFIX}"

    def coloured(self, slug: str) -> Path:
        """Return the same drawing as the sketch, in colour."""
        return picture_place(self.folder, "coloured") / f"{slug}{SUFFIX}"

    def _check(self) -> None:
        """Name what is missing before minutes are spent on the rest."""
        wanted = {self.query(slug) for slugs in self.identity.values() for slug in slugs}
        for slugs in self.sketches.values():
            wanted |= {path(slug) for slug in slugs for path in (self.sketch, self.coloured)}
        asked = {slug for by_split in (self.identity, self.sketches) for slugs in by_split.values() for slug in slugs}
        for split in SPLITS:
            for triplet in self.triplets.get(split, ()):
                wanted.add(self.query(triplet.reference))
                asked.add(triplet.target)
        reader = PathReader()
        absent = sorted(str(path) for path in wanted if reader.size(path) < 0)
        if absent:
            raise BenchmarkError(f"{self.folder} lacks {len(absent)} of {len(wanted)} pictures, the first {absent[0]}")
        unknown = sorted(slug for slug in asked if slug not in self.catalogue)
        if unknown:
            raise BenchmarkError(
                f"{len(unknown)} concepts are asked for that {self.gallery_list} has no picture of, the first "
                f"{unknown[0]!r}: write queries and gallery in one go"
            )


def picture_place(folder: Path, name: str) -> Path:
    """Return the archive NAME.zip in a folder, or the folder NAME where there is none."""
    archive = folder / f"{name}.zip"
    return archive if archive.is_file() else folder / name


def _slugs_by_split(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in read_rows(path, ("slug", "split")):
        found.setdefault(row["split"], []).append(row["slug"])
    return found
