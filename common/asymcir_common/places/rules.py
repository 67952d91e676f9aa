"""Which files are pictures, which names are usable, and how large a file may be: the same for training and gallery.

| subject | rule |
|---|---|
| files of a folder or an archive | taken by the suffixes of PICTURE_SUFFIXES; a list may name any file |
| hidden files and folders, JUNK_NAMES | left out, and counted |
| ids | UTF-8 text of 1 to MAX_ID_BYTES bytes; others are rejected; a gallery keeps them in Unicode's form NFC |
| names in archives | a leading `./` is removed; names with `..` or a leading `/` are rejected |
| links to files | followed in a folder and in a list; rejected in an archive |
| links to folders | rejected |
| named pipes, devices | never opened |
| size | at most MAX_FILE_BYTES, packed and unpacked |
| packing | stored or deflated in a zip; an uncompressed tar |
"""

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

PICTURE_SUFFIXES = frozenset(
    {
        ".apng", ".avif", ".avifs", ".bmp", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif", ".icb", ".ico",
        ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm",
        ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp",
    }
)  # fmt: skip
"""Files of a folder or an archive that are taken for pictures: all suffixes of the formats that are decoded."""

JUNK_NAMES = frozenset(
    {"#recycle", "$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "found.000", "lost+found"}
)
"""Folders that file servers, cameras and operating systems keep for themselves."""

HIDDEN = ".*"
"""Stands for the names that start with a dot, where what is left out is counted."""

CAPTION_SUFFIX, RECORD_SUFFIX = ".txt", ".json"
"""Files of a picture's own name that stand beside it."""

LIST_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIX = ".parquet"
ARCHIVE_SUFFIXES = frozenset({".tar", ".zip"})

MAX_ID_BYTES = 1024

_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
_SHOWN_SUFFIXES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """One entry that cannot be a picture, and why.

    Attributes:
        id: its id; "LIST:LINE" of a line of a list.
        path: as the place names it; empty where a line names none.
        reason: one line.
    """

    id: str
    path: str
    reason: str


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, with its dot; empty for none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - as text: a million names pass here


def is_hidden(name: str) -> bool:
    """Whether a path has a part that starts with a dot or is one of JUNK_NAMES."""
    return hidden_by(name) is not None


def hidden_by(name: str) -> str | None:
    """Return which rule leaves a path out: HIDDEN, or one of JUNK_NAMES; None where it is taken."""
    if not JUNK_NAMES.isdisjoint(parts := name.split("/")):
        return next(part for part in parts if part in JUNK_NAMES)
    return HIDDEN if "/." in f"/{name}" else None


def leaves_its_place(name: str) -> bool:
    """Whether a member's name is absolute or has a part `..`."""
    return name.startswith("/") or "/../" in f"/{name}/"


def is_compressed_tar(name: str) -> bool:
    """Whether a file's name is that of a compressed tar, out of which no single file can be read."""
    return _COMPRESSED.search(name) is not None


def to_nfc(text: str) -> str:
    """Return a text in Unicode's form NFC: "é" is one character, however a file system or a keyboard spells it."""
    return unicodedata.normalize("NFC", text)


def check_id(identity: str) -> str | None:
    """Return why a text cannot be an id, or None."""
    try:
        size_bytes = len(identity.encode("utf-8"))
    except UnicodeEncodeError:
        return "the id or path is not UTF-8 text: rename the file"
    if size_bytes == 0 or size_bytes > MAX_ID_BYTES:
        return f"expected an id of 1 to {MAX_ID_BYTES} bytes, got {size_bytes}"
    return None


def passed_over(suffixes: Mapping[str, int]) -> dict[str, int]:
    """Return the suffixes that are not taken for pictures, with the files of each."""
    return {suffix: count for suffix, count in suffixes.items() if suffix not in PICTURE_SUFFIXES}


def describe_suffixes(suffixes: Mapping[str, int]) -> str:
    """Say what was found where no picture was: "looked for ..., found 12 .txt, 3 .tar"."""
    most = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_SUFFIXES]
    found = ", ".join(f"{count} {suffix or '(no suffix)'}" for suffix, count in most) or "nothing"
    return f"looked for names that end in {', '.join(sorted(PICTURE_SUFFIXES))}, found {found}"
