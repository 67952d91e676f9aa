"""Digests that name a model: the identity behind `word_space` and `target_space`."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


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


class ModuleDigest:
    """The digest of a frozen module, computed once, and again where its weights changed all the same.

    Weights are hashed in a second a gigabyte, and a stage asks for the same digest several times. That none changed is
    told by torch's own count of writes to each tensor (an optimizer's step, `copy_`, `add_`) and by where it lies; a
    write through `.data` or numpy is not seen.
    """

    def __init__(self) -> None:
        self._found: tuple[tuple[Any, ...], str] | None = None

    def of(self, module: nn.Module, facts: Callable[[], Mapping[str, Any]]) -> str:
        """Return the digest of a module, always the same one, and of what `facts` returns where it must be computed."""
        weights = module.state_dict(keep_vars=True)
        marks = tuple((value.data_ptr(), value._version, value.dtype) for value in weights.values())
        if self._found is None or self._found[0] != marks:
            self._found = marks, digest(weights=weights, facts=facts())
        return self._found[1]
