"""Where the demo's files stand, and which queries it shows."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from asymcir_benchmarks import Triplet
from asymcir_benchmarks.emojicir.dataset import picture_place
from asymcir_benchmarks.emojicir.evaluate import read_triplets
from asymcir_benchmarks.emojicir.rows import read_rows

from asymcir_demo.errors import DemoError

SHOWN_FAMILY = "shown"
MEASURED = 300
SKETCHES_SHOWN = 6
_SEED = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Assets:
    """The demo's folder: bundles, gallery pictures, query pictures, sketches, triplets."""

    folder: Path

    @classmethod
    def find(cls, folder: Path) -> "Assets":
        """Check that the folder is there.

        Raises:
            DemoError: it is not; a wheel does not carry it.
        """
        if not (folder / "triplets.jsonl").is_file():
            raise DemoError(
                f"expected the demo's assets at {folder}, found none: run in a clone of the repository, "
                "or pass --assets; `make demo-assets` makes them anew"
            )
        return cls(folder=folder)

    @property
    def device_bundle(self) -> Path:
        """The device bundle."""
        return self.folder / "device"

    @property
    def server_bundle(self) -> Path:
        """The server bundle."""
        return self.folder / "server"

    @property
    def gallery_list(self) -> Path:
        """The JSON-lines list that the gallery is built from."""
        return self.folder / "gallery" / "gallery.jsonl"

    @property
    def gallery(self) -> Path:
        """Its pictures."""
        return picture_place(self.folder / "gallery", "gallery")

    @property
    def queries(self) -> Path:
        """Query pictures, in a style that nothing was trained on."""
        return picture_place(self.folder, "queries")

    @property
    def sketches(self) -> Path:
        """Line art of held-out concepts."""
        return picture_place(self.folder, "sketches")

    def names(self) -> dict[str, str]:
        """Return slug -> name of everything in the gallery."""
        lines = self.gallery_list.read_text(encoding="utf-8").splitlines()
        return {record["id"]: record["name"] for record in map(json.loads, lines)}

    def held_out_triplets(self) -> list[Triplet]:
        """Return the test split: target concepts unseen by distillation and by UNION training."""
        return [triplet for triplet in read_triplets(self.folder / "triplets.jsonl") if triplet.split == "test"]

    def measured_triplets(self) -> list[Triplet]:
        """Return the part of them that a demo run measures, drawn by a fixed seed; `asymcir eval emojicir` does all."""
        held_out = self.held_out_triplets()
        chosen = set(random.Random(_SEED).sample(range(len(held_out)), min(MEASURED, len(held_out))))
        return [triplet for number, triplet in enumerate(held_out) if number in chosen]

    def shown_triplets(self) -> list[Triplet]:
        """Return what every run shows: chosen ones of seen concepts, and held-out ones drawn by a fixed seed."""
        chosen = [
            triplet for triplet in read_triplets(self.folder / "triplets.jsonl") if triplet.family == SHOWN_FAMILY
        ]
        held_out = self.held_out_triplets()
        draw = random.Random(_SEED)
        families = list(dict.fromkeys(triplet.family for triplet in held_out))
        drawn = [draw.choice([triplet for triplet in held_out if triplet.family == family]) for family in families]
        return chosen + drawn

    def sketch_slugs(self) -> list[str]:
        """Return the concepts of the test split that line art is there for."""
        return [
            row["slug"]
            for row in read_rows(self.folder / "sketches.jsonl", ("slug", "split"))
            if row["split"] == "test"
        ]

    def shown_sketches(self) -> list[str]:
        """Return the sketches that every run shows, drawn by a fixed seed."""
        return random.Random(_SEED).sample(self.sketch_slugs(), SKETCHES_SHOWN)
