"""Digests that name a model: the identity behind `word_space` and `target_space`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SAMPLED_PICTURES = 64


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


def digest_pictures(arrays: Sequence[NDArray[np.uint8]]) -> str:
    """Hash the sizes of picture arrays [n, S, S, 3] and an even sample of each: enough to tell two sets apart."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(str(array.shape).encode())
        for place in np.linspace(0, len(array) - 1, min(len(array), _SAMPLED_PICTURES)).astype(int):
            sha256.update(np.ascontiguousarray(array[place]).tobytes())
    return sha256.hexdigest()
