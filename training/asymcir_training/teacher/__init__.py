"""The frozen towers' outputs: computed once, kept on disk, and read by row."""

from asymcir_training.teacher.cache import TeacherCache, build_teacher_cache, visual_digest
from asymcir_training.teacher.in_memory import embed_patches, embed_phrases, embed_pictures, embed_texts

__all__ = [
    "TeacherCache",
    "build_teacher_cache",
    "embed_patches",
    "embed_phrases",
    "embed_pictures",
    "embed_texts",
    "visual_digest",
]
