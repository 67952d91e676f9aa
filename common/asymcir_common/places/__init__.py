"""Places that pictures come from: folders, zips, tars, Parquet files and JSON-lines lists, read alike by training and
gallery; archives, Parquet files, lists and the pictures that these name may be at URLs.

One module a kind of place, each a `Place`; `open_places` opens them, alone or together. Several
named by one text need `braceexpand`.
"""

from asymcir_common.files import MAX_FILE_BYTES
from asymcir_common.places.lists import captions_of, concept_of, parse_record
from asymcir_common.places.path_reading import PathReader
from asymcir_common.places.places import Place, Places, find_pictures, open_places
from asymcir_common.places.rules import MAX_ID_BYTES, PICTURE_SUFFIXES, Rejected

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_ID_BYTES",
    "PICTURE_SUFFIXES",
    "PathReader",
    "Place",
    "Places",
    "Rejected",
    "captions_of",
    "concept_of",
    "find_pictures",
    "open_places",
    "parse_record",
]
