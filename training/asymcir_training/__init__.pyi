from .batches.scan import scan_pictures
from .engine.execution import Execution
from .engine.precision import Precision
from .engine.processes import Processes
from .errors import CheckpointError, ConfigError, DataError, FoundationError, TrainingError
from .foundation.model import Foundation, load_foundation
from .foundation.preprocessing import normalise_pixels
from .foundation.prompts import PROMPTS
from .models.checkpoints import load_light_encoder, load_union_head, save_light_encoder, save_union_head
from .models.light_encoder import AdaptiveTokenLearner, LightEncoder
from .models.symmetric_encoder import SymmetricEncoder
from .models.transagg import TransAgg
from .models.union_head import UnionHead
from .pictures.sets import Pictures, PictureSet, open_pictures
from .runs.settings import LoopConfig, RunSummary
from .teacher.cache import TeacherCache, build_teacher_cache
from .trainers.align import AlignConfig, align_visual_tower
from .trainers.distil import DistilConfig, distil
from .trainers.transagg import TransAggConfig, train_transagg
from .trainers.union import UnionConfig, train_union_head
from .triplets.formats import read_triplets

__all__ = [
    "AdaptiveTokenLearner",
    "AlignConfig",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DistilConfig",
    "Execution",
    "Foundation",
    "FoundationError",
    "LightEncoder",
    "LoopConfig",
    "PROMPTS",
    "PictureSet",
    "Pictures",
    "Precision",
    "Processes",
    "RunSummary",
    "SymmetricEncoder",
    "TeacherCache",
    "TrainingError",
    "TransAgg",
    "TransAggConfig",
    "UnionConfig",
    "UnionHead",
    "align_visual_tower",
    "build_teacher_cache",
    "distil",
    "load_foundation",
    "load_light_encoder",
    "load_union_head",
    "normalise_pixels",
    "open_pictures",
    "read_triplets",
    "save_light_encoder",
    "save_union_head",
    "scan_pictures",
    "train_transagg",
    "train_union_head",
]
