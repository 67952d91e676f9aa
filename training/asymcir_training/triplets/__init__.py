"""Training and evaluation triplets: their list formats, their pictures, and the retrieval metrics measured on them."""

from asymcir_training.triplets.formats import read_triplets
from asymcir_training.triplets.modifiers import check_modifiers, check_triplets
from asymcir_training.triplets.pictures import embed_modifiers, gather_gallery, number_pictures
from asymcir_training.triplets.ranking import rank_answers
from asymcir_training.triplets.triplet import PictureTriplet
from asymcir_training.triplets.validation import TripletValidation, compose_triplets

__all__ = [
    "PictureTriplet",
    "TripletValidation",
    "check_modifiers",
    "check_triplets",
    "compose_triplets",
    "embed_modifiers",
    "gather_gallery",
    "number_pictures",
    "rank_answers",
    "read_triplets",
]
