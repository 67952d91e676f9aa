from tiny_models import causal_foundation, pictures, union_head

__all__ = [
    "causal_foundation",
    "pictures",
    "union_head",
]
