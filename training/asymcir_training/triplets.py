"""Triplets from the user's own files: JSON lines with `reference`, `modifier` and `target`, paths beside the list."""

import json
from dataclasses import dataclass
from pathlib import Path

from asymcir_training.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureTriplet:
    """A picture, the change typed with it, and the picture that answers."""

    reference: Path
    modifier: str
    target: Path


def read_picture_triplets(path: Path) -> list[PictureTriplet]:
    """Read triplets; relative paths are taken from the list's own folder.

    Raises:
        DataError: no such list, a line that is not a triplet, or a picture that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read the triplets {path}: {exc}") from exc
    triplets = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            triplet = PictureTriplet(
                reference=path.parent / record["reference"],
                modifier=str(record.get("modifier", "")),
                target=path.parent / record["target"],
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise DataError(
                f'{path}:{number}: expected {{"reference": PATH, "modifier": TEXT, "target": PATH}}, got {line[:80]!r}'
            ) from exc
        for picture in (triplet.reference, triplet.target):
            if not picture.is_file():
                raise DataError(f"{path}:{number}: there is no picture {picture}")
        triplets.append(triplet)
    if not triplets:
        raise DataError(f"{path} holds no triplet")
    return triplets
