"""What is trained: the light encoder and its token learner, the symmetric encoder, the UNION head, TransAgg; and their
checkpoints.
"""

from asymcir_training.models.checkpoints import (
    check_free,
    load_light_encoder,
    load_symmetric_encoder,
    load_transagg,
    load_union_head,
    read_kind,
    save_light_encoder,
    save_symmetric_encoder,
    save_transagg,
    save_union_head,
)
from asymcir_training.models.light_encoder import AdaptiveTokenLearner, LightEncoder
from asymcir_training.models.mix_style import freeze_stages, mixed_styles
from asymcir_training.models.symmetric_encoder import SymmetricEncoder
from asymcir_training.models.transagg import TextPlaces, TransAgg, encode_text_places
from asymcir_training.models.union_head import UnionHead

__all__ = [
    "AdaptiveTokenLearner",
    "LightEncoder",
    "SymmetricEncoder",
    "TextPlaces",
    "TransAgg",
    "UnionHead",
    "check_free",
    "encode_text_places",
    "freeze_stages",
    "load_light_encoder",
    "load_symmetric_encoder",
    "load_transagg",
    "load_union_head",
    "mixed_styles",
    "read_kind",
    "save_light_encoder",
    "save_symmetric_encoder",
    "save_transagg",
    "save_union_head",
]
