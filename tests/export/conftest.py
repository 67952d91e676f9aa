from tiny_models import (
    bert_foundation,
    bert_name,
    causal_foundation,
    coreml_package,
    light_encoder,
    padded_foundation,
    pictures,
    union_head,
)

__all__ = [
    "bert_foundation",
    "bert_name",
    "causal_foundation",
    "coreml_package",
    "light_encoder",
    "padded_foundation",
    "pictures",
    "union_head",
]
