"""Triplets as numbers and tensors: which picture asks, which answers, in what gallery, and what the text tower says.

Notation: t triplets, n pictures, r of them that ask, N gallery size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from asymcir_common.errors import PlaceError
from asymcir_common.places import find_pictures
from torch import Tensor
from torch.nn import functional

from asymcir_training.batches.scan import PassProgress
from asymcir_training.errors import DataError
from asymcir_training.foundation.model import Foundation
from asymcir_training.models.transagg import TextPlaces, encode_text_places
from asymcir_training.triplets.triplet import PictureTriplet


@dataclass(frozen=True, kw_only=True, slots=True)
class TripletPictures:
    """The pictures of triplets, each once.

    Attributes:
        paths: n pictures; the first r ask, so that patches are kept of those alone.
        asking: r.
        references: [t], int64, which picture asks.
        targets: [t], int64, which picture answers.
    """

    paths: Sequence[Path]
    asking: int
    references: Tensor
    targets: Tensor


def number_pictures(triplets: Sequence[PictureTriplet]) -> TripletPictures:
    """Number the references and the targets of triplets."""
    references = dict.fromkeys(triplet.reference for triplet in triplets)
    paths = list(dict.fromkeys([*references, *(triplet.target for triplet in triplets)]))
    numbers = {path: number for number, path in enumerate(paths)}
    return TripletPictures(
        paths=paths,
        asking=len(references),
        references=torch.tensor([numbers[triplet.reference] for triplet in triplets], dtype=torch.int64),
        targets=torch.tensor([numbers[triplet.target] for triplet in triplets], dtype=torch.int64),
    )


def number_concepts(triplets: Sequence[PictureTriplet], targets: Tensor, *, pictures: int) -> Tensor:
    """Number what each picture shows, so that targets of one concept are no wrong answers to each other.

    Args:
        triplets: t of them.
        targets: [t], int64, which picture answers.
        pictures: n.

    Returns:
        [n], int64: targets of one concept alike, every other picture by itself.
    """
    answers = torch.arange(pictures)
    first: dict[str, int] = {}
    for triplet, target in zip(triplets, targets.tolist(), strict=True):
        if triplet.concept:
            answers[target] = first.setdefault(triplet.concept, target)
    return answers


@dataclass(frozen=True, kw_only=True, slots=True)
class TripletGallery:
    """What triplets are searched in, each picture once however many names it has.

    Attributes:
        paths: N pictures: those of the triplets, then the others.
        answers: t lists of rows, each of which is right.
        excluded: t lists of rows that are taken out of a query's ranking: its reference, and what the triplet says.
    """

    paths: Sequence[Path]
    answers: Sequence[Sequence[int]]
    excluded: Sequence[Sequence[int]]

    def restrict(self, kept: Sequence[int], asked: Sequence[bool]) -> tuple[list[int], "TripletGallery"]:
        """Leave out the pictures that cannot be read, and the triplets that ask with one or have one for a target.

        Args:
            kept: rows that stay, ascending.
            asked: t, whether the reference can be read.

        Returns:
            The numbers of the triplets that stay, and their gallery.
        """
        rows = {old: row for row, old in enumerate(kept)}
        # The target is the first that answers a triplet.
        usable = [number for number, readable in enumerate(asked) if readable and self.answers[number][0] in rows]
        return usable, TripletGallery(
            paths=[self.paths[row] for row in kept],
            answers=[[rows[row] for row in self.answers[number] if row in rows] for number in usable],
            excluded=[[rows[row] for row in self.excluded[number] if row in rows] for number in usable],
        )


def gather_gallery(triplets: Sequence[PictureTriplet], folders: Sequence[Path] = ()) -> TripletGallery:
    """Make the gallery of triplets.

    Without folders it is every picture that they name, references too, as CIRR has it. With folders (or archives) it is
    what they hold, and the answers: queries may be of another kind than the gallery (sketches, another style), and
    their pictures no part of it. A picture that comes both ways is one row; as two, an answer's copy would stand among
    the wrong ones.

    Raises:
        DataError: a folder without pictures.
    """
    paths: dict[Path, Path] = {}  # resolved -> as it was named
    for triplet in triplets:
        for picture in triplet.answers if folders else triplet.pictures:
            paths.setdefault(picture.resolve(), picture)
    for folder in folders:
        try:
            found = find_pictures(folder)
        except PlaceError as exc:
            raise DataError(f"the gallery {folder}: {exc}") from exc
        if not found:
            raise DataError(f"no picture below the gallery {folder}: expected a folder or an archive with pictures")
        for picture in found:
            paths.setdefault(picture.resolve(), picture)
    rows = {path: row for row, path in enumerate(paths)}
    return TripletGallery(
        paths=list(paths.values()),
        answers=[[rows[path.resolve()] for path in triplet.answers] for triplet in triplets],
        excluded=[
            [rows[path.resolve()] for path in (triplet.reference, *triplet.excluded) if path.resolve() in rows]
            for triplet in triplets
        ],
    )


def embed_modifiers(foundation: Foundation, modifiers: Sequence[str], *, batch: int = 128) -> TextPlaces:
    """Run the frozen text tower over modifiers, keeping every place: rows padded to the longest, on the CPU.

    Features float32, tokens float16: 5,000 modifiers of 77 places and width 768 are 590 MB. A modifier that comes again
    is embedded once.
    """
    if not modifiers:
        raise DataError("expected modifiers to embed, got none")
    different = list(dict.fromkeys(modifiers))
    progress = PassProgress("modifiers:", total=len(different), first=0, of="texts")
    parts = []
    for start in range(0, len(different), batch):
        some = different[start : start + batch]
        parts.append(encode_text_places(foundation, some).to("cpu"))
        progress.update(start + len(some))
    length = max(part.tokens.shape[1] for part in parts)
    missing = [length - part.tokens.shape[1] for part in parts]
    pad = functional.pad
    once = TextPlaces(
        features=torch.cat([part.features.float() for part in parts]),
        tokens=torch.cat([pad(part.tokens.half(), (0, 0, 0, m)) for part, m in zip(parts, missing, strict=True)]),
        padding=torch.cat([pad(part.padding, (0, m), value=True) for part, m in zip(parts, missing, strict=True)]),
        place=torch.cat([part.place for part in parts]),
    )
    if len(different) == len(modifiers):
        return once
    places = {text: place for place, text in enumerate(different)}
    return once.pick(torch.tensor([places[text] for text in modifiers]))
