"""Records of the public triplet files, one reader a format; `triplet_formats` says which layouts these are.

A reader takes the list's text, its path and the folder of the pictures, and yields triplets in the list's order. It
does not look for the pictures.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asymcir_training.errors import DataError
from asymcir_training.triplets.triplet import PictureTriplet

CAPTION_JOINT = " with "
"""Between LlavaSCo's relative caption and its target caption, as UNION's public code joins them."""

_LENGTH = 100  # characters of a record that an error shows
_FIELDS = {
    "lasco": ("query-image", "query-text", "target-image"),
    "llavasco": ("reference_image_id", "relative_caption", "target_image_id", "llava_target_caption"),
    "cirr": ("pairid", "reference", "caption", "target_hard"),
}


def detect_format(text: str, path: Path) -> str:
    """Tell a list's format from its first record.

    Raises:
        DataError: it is of no known format.
    """
    start = text.lstrip()
    if start.startswith("["):
        record = _first_record(start, path)
        if "llava_target_caption" in record:
            return "llavasco"
        if "query-image" in record:
            return "lasco"
        if "pairid" in record:
            return "cirr"
        raise DataError(
            f"{path}: expected the records of LaSCo (query-image), LlavaSCo (llava_target_caption) or CIRR (pairid), "
            f"got one with {', '.join(sorted(record)) or 'nothing'}"
        )
    if start.startswith("{"):
        return "jsonl"
    if start and len(start.splitlines()[0].split()) == len(("object", "sketch", "photo")):
        return "sketchy"
    if not start:
        raise DataError(f"{path} holds no triplet")
    raise DataError(
        f"{path}:1: expected a JSON list (LaSCo, LlavaSCo, CIRR), JSON lines with reference, modifier and target, or "
        f'lines "object sketch photo" (Training-Sketchy), got {start[:_LENGTH]!r}'
    )


def _lasco_records(text: str, path: Path, images: Path | None) -> Iterator[PictureTriplet]:
    root = images or path.parent
    for where, record in _records(text, path, "lasco"):
        yield _lasco_triplet(record, root, where, str(record["query-text"]))


def _llavasco_records(text: str, path: Path, images: Path | None) -> Iterator[PictureTriplet]:
    root = images or path.parent
    # Records of either writing come in one file; what they must hold shows in each.
    for where, record in _numbered(_json_list(text, path), path):
        caption = record.get("llava_target_caption")
        if "query-image" in record and isinstance(caption, str):
            _require(record, _FIELDS["lasco"], "LlavaSCo", where)
            yield _lasco_triplet(record, root, where, _join(record["query-text"], caption))
            continue
        _require(record, _FIELDS["llavasco"], "LlavaSCo", where)
        pictures = [_coco_path(record[name], path, where) for name in ("reference_image_id", "target_image_id")]
        yield PictureTriplet(
            reference=root / pictures[0],
            modifier=_join(record["relative_caption"], str(caption)),
            target=root / pictures[1],
            identity=str(record.get("qid", "")),
            where=where,
        )


def _cirr_records(text: str, path: Path, images: Path | None) -> Iterator[PictureTriplet]:
    if images is None:
        raise DataError(f"{path} is of CIRR, whose pictures lie elsewhere: pass the folder that holds them as images")
    records = _json_list(text, path)
    if records and isinstance(records[0], dict) and "target_hard" not in records[0]:
        raise DataError(
            f"{path} carries no target_hard: CIRR keeps the targets of test1 on its server; take cap.rc2.train.json or "
            "cap.rc2.val.json"
        )
    table = _cirr_table(path)
    for where, record in _records(text, path, "cirr"):
        names = [str(record["reference"]), str(record["target_hard"])]
        unknown = [name for name in names if name not in table]
        if unknown:
            raise DataError(
                f"{where}: {_cirr_split(path)} does not list the picture {unknown[0]!r}: take its own split"
            )
        reference, target = (images / table[name] for name in names)
        yield PictureTriplet(
            reference=reference,
            modifier=str(record["caption"]).strip(),
            target=target,
            identity=str(record["pairid"]),
            where=where,
        )


def _training_sketchy_records(text: str, path: Path, images: Path | None) -> Iterator[PictureTriplet]:
    root = images or (path.parent.parent if path.parent.name.startswith("zeroshot") else path.parent)
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != len(("object", "sketch", "photo")):
            raise DataError(
                f'{path}:{number}: expected "object sketch photo", three words, got {len(fields)} in '
                f"{line[:_LENGTH]!r}: rename what holds a space"
            )
        name, sketch, photo = fields
        yield PictureTriplet(reference=root / sketch, modifier="", target=root / photo, identity=name)


def _json_lines_records(text: str, path: Path, images: Path | None) -> Iterator[PictureTriplet]:
    root = images or path.parent
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            modifier, more = record.get("modifier", ""), record.get("targets", [])
            excluded, concept = record.get("excluded", []), record.get("concept", "")
            if not isinstance(modifier, str) or not isinstance(more, list) or not isinstance(excluded, list):
                raise TypeError("modifier must be a text, targets and excluded lists")
            if not isinstance(concept, str):
                raise TypeError("concept must be a text")
            yield PictureTriplet(
                reference=root / record["reference"],
                modifier=modifier,
                target=root / record["target"],
                targets=tuple(root / name for name in more),
                excluded=tuple(root / name for name in excluded),
                identity=str(record.get("id", "")),
                where=f"{path}:{number}",
                concept=concept,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise DataError(
                f'{path}:{number}: expected {{"reference": PATH, "modifier": TEXT, "target": PATH}}, and if wanted '
                f'"targets": [PATH, ...], "excluded": [PATH, ...], "concept" and "id", got {line[:_LENGTH]!r}'
            ) from exc


READERS: Mapping[str, Callable[[str, Path, Path | None], Iterator[PictureTriplet]]] = {
    "lasco": _lasco_records,
    "llavasco": _llavasco_records,
    "cirr": _cirr_records,
    "sketchy": _training_sketchy_records,
    "jsonl": _json_lines_records,
}


def _json_list(text: str, path: Path) -> list[Any]:
    try:
        records = json.loads(text)
    except ValueError as exc:
        raise DataError(f"{path}: expected a JSON list of records ({exc}): is the download complete?") from exc
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a JSON list of records, got a {type(records).__name__}")
    return records


def _numbered(records: Sequence[Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in enumerate(records, start=1):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object, got {str(record)[:_LENGTH]!r}")
        yield where, record


def _first_record(text: str, path: Path) -> dict[str, Any]:
    """Parse the first record of a JSON list alone: the list may hold hundreds of thousands."""
    inside = text[1:].lstrip()
    if inside.startswith("]"):
        raise DataError(f"{path} holds no triplet")
    try:
        record, _ = json.JSONDecoder().raw_decode(inside)
    except ValueError as exc:
        raise DataError(f"{path}: expected a JSON list of records ({exc}): is the download complete?") from exc
    return next(_numbered([record], path))[1]


def _records(text: str, path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, record in _numbered(_json_list(text, path), path):
        _require(record, _FIELDS[name], name, where)
        yield where, record


def _require(record: Mapping[str, Any], fields: Sequence[str], name: str, where: str) -> None:
    lacking = [field for field in fields if field not in record]
    if lacking:
        raise DataError(
            f"{where}: expected a record of {name} with {', '.join(fields)}; {', '.join(lacking)} is not there, got "
            f"{json.dumps(record, ensure_ascii=False)[:_LENGTH]}"
        )


def _lasco_triplet(record: Mapping[str, Any], root: Path, where: str, modifier: str) -> PictureTriplet:
    paths = []
    for field in ("query-image", "target-image"):
        value = record[field]
        if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)):
            raise DataError(f"{where}: expected {field} to be [id, path], got {str(value)[:_LENGTH]!r}")
        paths.append(root / value[1])
    return PictureTriplet(
        reference=paths[0],
        modifier=modifier.strip(),
        target=paths[1],
        identity=str(record.get("qid", "")),
        where=where,
    )


def _join(relative: Any, caption: str) -> str:
    return f"{str(relative).strip()}{CAPTION_JOINT}{caption.strip()}"


def _coco_path(identity: Any, path: Path, where: str) -> str:
    """Return where COCO 2014 keeps a picture; the split is in the list's name, as in `train_llavasco.json`."""
    found = re.search(r"train|val", path.name)
    if found is None:
        raise DataError(
            f"{where}: it names its pictures by COCO id only, so the list's name must say the split, as "
            f"train_llavasco.json does: rename {path.name}"
        )
    digits = str(identity)
    if not digits.isdecimal():
        raise DataError(f"{where}: expected a COCO id, a whole number, got {identity!r}")
    return f"{found[0]}2014/COCO_{found[0]}2014_{digits.zfill(12)}.jpg"


def _cirr_split(path: Path) -> Path:
    return path.parent.parent / "image_splits" / path.name.replace("cap.", "split.", 1)


def _cirr_table(path: Path) -> dict[str, str]:
    split = _cirr_split(path)
    try:
        table = json.loads(split.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DataError(
            f"cannot read {split} ({exc}): CIRR's captions stand beside image_splits, which names the pictures; keep "
            "its folders as they are"
        ) from exc
    if not isinstance(table, dict):
        raise DataError(f"{split}: expected an object of picture name -> path, got a {type(table).__name__}")
    return table
