"""What a build takes in: entries of places, decoded in threads, and what earlier builds already made of them."""

from asymcir_server.gallery.sources.decode import DecodedPicture, decode_batches
from asymcir_server.gallery.sources.encoded import Encoded, EncodedPictures, Wanted, open_encoded
from asymcir_server.gallery.sources.entries import Entry, Source, open_source

__all__ = [
    "DecodedPicture",
    "Encoded",
    "EncodedPictures",
    "Entry",
    "Source",
    "Wanted",
    "decode_batches",
    "open_encoded",
    "open_source",
]
