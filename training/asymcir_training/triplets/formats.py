"""Triplets from the files that public data sets come in: LaSCo, LlavaSCo, CIRR, Training-Sketchy and plain JSON lines.

Layouts, of an official download each, with the folder that `images` stands for where it is not given:

- LaSCo: `lasco_train.json`, a list of `qid`, `query-image` [id, path], `query-text`, `target-image` [id, path]. The
  list's own folder.
- LlavaSCo: LaSCo's records with `llava_reference_caption` and `llava_target_caption`; or, as UNION's public code reads
  it, `reference_image_id`, `relative_caption`, `target_image_id` and the captions, the pictures at
  `train2014/COCO_train2014_000000000009.jpg`. The modifier is "RELATIVE with TARGET", both captions. The list's own
  folder.
- CIRR: `cirr/captions/cap.rc2.train.json`, with `cirr/image_splits/split.rc2.train.json` naming the pictures. No folder
  is known: the pictures are a download of their own.
- Training-Sketchy: lines "object sketch photo", `zeroshot1/training_sketchy.txt`. The folder above `zeroshot1`. The
  modifier is empty: UNION's public code types "a real image of sketch" with every sketch, and null text asks the same
  of the picture alone.
- JSON lines: `reference`, `modifier`, `target`, and if wanted `targets` (further right answers), `excluded` (pictures
  that evaluation takes out of the ranking beside the reference), `concept` (what the target shows: in training, targets
  of one concept are no wrong answers to each other) and `id`. The list's own folder.

Source: the public code of UNION (arXiv:2511.22253) and the data sets' own pages.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from asymcir_common import PlaceError
from asymcir_common.files import read_utf8

from asymcir_training.errors import DataError
from asymcir_training.triplets.records import READERS, detect_format
from asymcir_training.triplets.triplet import PictureTriplet

Format = Literal["auto", "lasco", "llavasco", "cirr", "sketchy", "jsonl"]
FORMATS = tuple(READERS)

_NAMED = 3  # missing pictures that are named
_LOG = logging.getLogger(__name__)


def read_triplets(
    path: str | Path,
    *,
    format: Format = "auto",
    images: str | Path | None = None,
    limit: int | None = None,
    step: int | None = None,
    seed: int | None = None,
) -> list[PictureTriplet]:
    """Read triplets.

    Args:
        path: the list.
        format: of FORMATS; "auto" tells it from the content.
        images: folder that the list's picture paths start from; see the module for what each format takes otherwise.
        limit: read so many at most: spread evenly over the list; with `step`, every step-th from the first on; with
            `seed`, drawn at random. UNION's public code takes 5,000 of LlavaSCo, with a step of 70.
        step, seed: see limit; one of them at most.

    Returns:
        In the order of the list; those whose pictures are not there are left out, and their number is logged.

    Raises:
        DataError: no such list, a record that is not of the format (by its number), or nothing left.
    """
    path = Path(path)
    images = None if images is None else Path(images)
    if format != "auto" and format not in FORMATS:
        raise DataError(f"expected a format of auto, {', '.join(FORMATS)}, got {format!r}")
    text = _read_text(path)
    name = detect_format(text, path) if format == "auto" else format
    places = list(READERS[name](text, path, images))
    chosen = _sample(places, limit=limit, step=step, seed=seed)
    triplets = _keep_present(chosen, path, images)
    _LOG.info("%s: %d triplets of %d (%s)", path, len(triplets), len(places), name)
    return triplets


def _read_text(path: Path) -> str:
    try:
        return read_utf8(path)
    except PlaceError as exc:
        raise DataError(f"cannot read the triplets: {exc}") from exc


def _sample(
    triplets: list[PictureTriplet], *, limit: int | None, step: int | None, seed: int | None
) -> list[PictureTriplet]:
    if limit is None and step is None:
        if seed is not None:
            raise DataError("a seed draws a sample: pass its size as limit as well")
        return triplets
    if (limit is not None and limit < 1) or (step is not None and step < 1) or (step is not None and seed is not None):
        raise DataError(f"expected limit and step of 1 or more, and step or seed, got {limit}, {step} and {seed}")
    if step is not None:
        return triplets[::step][:limit]
    if limit is None or limit >= len(triplets):
        return triplets
    if seed is not None:
        picked = random.Random(seed).sample(range(len(triplets)), limit)
        return [triplets[number] for number in sorted(picked)]
    return [triplets[number * len(triplets) // limit] for number in range(limit)]


def _keep_present(triplets: Sequence[PictureTriplet], path: Path, images: Path | None) -> list[PictureTriplet]:
    """Leave out triplets that lack a picture; each picture is looked for once."""
    if not triplets:
        raise DataError(f"{path} holds no triplet")
    pictures = dict.fromkeys(picture for triplet in triplets for picture in triplet.pictures)
    absent = [picture for picture in pictures if not picture.is_file()]
    if not absent:
        return list(triplets)
    lost = set(absent)
    kept = [triplet for triplet in triplets if not lost.intersection(triplet.pictures)]
    named = ", ".join(str(picture) for picture in absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
    what = f"{path}: there is no picture {named} ({len(absent)} of {len(pictures)} are missing)"
    if not kept:
        start = images if images is not None else "the list's own place"
        raise DataError(f"{what}: paths start from {start}; pass the folder that holds the pictures as images")
    _LOG.warning("%s; %d of %d triplets are left out", what, len(triplets) - len(kept), len(triplets))
    return kept
