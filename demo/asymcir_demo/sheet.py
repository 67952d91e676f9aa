"""The contact sheet: one row a query, with its change, the top answers, and the right one marked."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asymcir_common.places import PathReader
from PIL import Image, ImageDraw, ImageFont

TOP = 5
_CELL = 128
_GAP = 14
_TEXT_WIDTH = 250
_HEADER = 64
_GREEN, _INK, _MUTED, _LINE = (22, 160, 72), (30, 30, 34), (120, 120, 128), (225, 225, 230)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One query and its answers.

    Attributes:
        query: the picture that was asked with.
        change: the typed change, or "" for a picture alone.
        note: what kind of query it is.
        hits: ids, best first, at most TOP.
        answer: the right id.
        rank: of the right id, None past what was asked for.
    """

    query: Path
    change: str
    note: str
    hits: Sequence[str]
    answer: str
    rank: int | None


def draw_sheet(rows: Sequence[Row], gallery: Path, suffix: str, title: str, out: Path) -> None:
    """Draw the rows to a PNG.

    Args:
        rows: in the order to show.
        gallery: folder or archive of the gallery's pictures, ID + suffix.
        suffix: ".webp", say.
        title: over everything.
        out: the file; replaced.
    """
    height = _HEADER + len(rows) * (_CELL + 2 * _GAP)
    answers_left = _GAP + _CELL + _GAP + _TEXT_WIDTH
    expected_left = answers_left + TOP * (_CELL + _GAP) + 2 * _GAP
    sheet = Image.new("RGB", (expected_left + _CELL + _GAP, height), "white")
    pen, reader = ImageDraw.Draw(sheet), PathReader()
    pen.text((_GAP, 10), title, fill=_INK, font=_font(20))
    for left, label in ((_GAP, "query"), (answers_left, f"top {TOP} answers"), (expected_left, "right answer")):
        pen.text((left, 38), label, fill=_MUTED, font=_font(14))
    for number, row in enumerate(rows):
        top = _HEADER + number * (_CELL + 2 * _GAP) + _GAP
        pen.line((0, top - _GAP, sheet.width, top - _GAP), fill=_LINE)
        _paste(sheet, reader, row.query, _GAP, top)
        _write_query(pen, row, _GAP + _CELL + _GAP, top)
        for place, identity in enumerate(row.hits[:TOP]):
            left = answers_left + place * (_CELL + _GAP)
            _paste(sheet, reader, gallery / f"{identity}{suffix}", left, top)
            if identity == row.answer:
                pen.rectangle((left - 4, top - 4, left + _CELL + 3, top + _CELL + 3), outline=_GREEN, width=4)
        _paste(sheet, reader, gallery / f"{row.answer}{suffix}", expected_left, top)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def _write_query(pen: ImageDraw.ImageDraw, row: Row, left: int, top: int) -> None:
    change = f"… that {row.change}" if row.change else "(no change typed)"
    lines = _wrap(change, _font(17), _TEXT_WIDTH - 2 * _GAP)
    for number, line in enumerate(lines):
        pen.text((left, top + 8 + 22 * number), line, fill=_INK, font=_font(17))
    below = top + 14 + 22 * len(lines)
    pen.text((left, below), row.note, fill=_MUTED, font=_font(13))
    rank = f"right answer at rank {row.rank}" if row.rank else "right answer past rank 10"
    pen.text((left, below + 18), rank, fill=_GREEN if row.rank and row.rank <= TOP else _MUTED, font=_font(13))


def _wrap(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _paste(sheet: Image.Image, reader: PathReader, path: Path, left: int, top: int) -> None:
    with Image.open(io.BytesIO(reader.read(path))) as picture:
        sheet.paste(picture.convert("RGB").resize((_CELL, _CELL)), (left, top))


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size)
