"""The trainers and their losses: alignment, distillation, UNION and TransAgg."""

from asymcir_training.trainers.align import AlignConfig, Wordings, align_visual_tower
from asymcir_training.trainers.distil import DistilConfig, distil
from asymcir_training.trainers.targets import represent_targets
from asymcir_training.trainers.transagg import TransAggConfig, train_transagg
from asymcir_training.trainers.union import UnionConfig, train_union_head

__all__ = [
    "AlignConfig",
    "DistilConfig",
    "TransAggConfig",
    "UnionConfig",
    "Wordings",
    "align_visual_tower",
    "distil",
    "represent_targets",
    "train_transagg",
    "train_union_head",
]
