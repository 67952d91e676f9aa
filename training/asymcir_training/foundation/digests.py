"""Digests that name a model: the identity behind `word_space` and `target_space`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(*, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Hash weights and plain facts.

    Weights are hashed as float32 in the order of their names, so that the device they lie on does not matter. A model
    that was rounded to half precision is another model.

    Args:
        weights: name -> tensor, any shape.
        facts: JSON-serialisable.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    sha256 = hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
    for name in sorted(weights):
        value = weights[name].detach().to(device="cpu", dtype=torch.float32).contiguous()
        sha256.update(f"{name}:{list(value.shape)}".encode())
        sha256.update(value.numpy().tobytes())
    return sha256.hexdigest()
