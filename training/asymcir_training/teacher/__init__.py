"""The frozen towers' outputs: computed once, kept on disk, and read by row."""

from asymcir_training.teacher.cache import TeacherCache, build_teacher_cache
from asymcir_training.teacher.in_memory import embed_phrases, embed_texts
from asymcir_training.teacher.queries import cache_queries
from asymcir_training.teacher.texts import TextCache

__all__ = [
    "TeacherCache",
    "TextCache",
    "build_teacher_cache",
    "cache_queries",
    "embed_phrases",
    "embed_texts",
]
