"""Pictures to train on: folders, zips, tars and JSON-lines lists, opened as one set of numbered pictures."""

from asymcir_training.pictures.files import PictureFiles
from asymcir_training.pictures.sets import PictureSet, open_pictures

__all__ = [
    "PictureFiles",
    "PictureSet",
    "open_pictures",
]
