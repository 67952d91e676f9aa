"""The frozen visual tower as the teacher of a distillation: image and patch features, in one pass if it allows.

Notation: b batch, E joint-embedding width, P patches, C width of the tower, S picture side.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asymcir_training.foundation.model import Foundation

Encoder = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Pixels [b, S, S, 3] uint8 -> image features [b, E], patch features [b, P, E] or None."""

_SAME_SHARE = 0.02
"""Largest difference of one pass for both outputs to a pass for each, as a share of the largest value.

Rounding alone differs by 1e-6 in fp32 and 1e-2 in bf16; another pooling or a missing norm by far more.
"""


def choose_encoder(
    foundation: Foundation, *, patches: bool, device: torch.device, autocast: torch.dtype | None
) -> Encoder:
    """Return what runs the visual tower on uint8 pixels [b, S, S, 3], in one pass where both outputs come of one.

    Whether they do is tried on two random pictures: only a tower whose one pass says what `encode_pixels` and
    `encode_patches` say is run so.

    Raises:
        FoundationError: patches of a tower that has none.
    """
    foundation.to(device)

    @torch.no_grad()
    def encode_apart(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        shown = foundation.normalise_pixels(pixels.to(device))
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return foundation.encode_pixels(shown), foundation.encode_patches(shown) if patches else None

    @torch.no_grad()
    def encode_together(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        shown = foundation.normalise_pixels(pixels.to(device))
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return _encode_pixels_and_patches(foundation.model.visual, shown)

    if not patches:
        return encode_apart
    side = foundation.preprocessing.size
    probe = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = encode_apart(probe)
    try:
        found = encode_together(probe)
    except (AttributeError, KeyError, RuntimeError, TypeError):
        return encode_apart
    return encode_together if _is_same(found, expected) else encode_apart


def _encode_pixels_and_patches(visual: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `Foundation.encode_pixels` and `encode_patches` in one forward pass, for the towers known to allow it."""
    if hasattr(visual, "encode_states"):  # BLIP's
        states = visual.encode_states(pixels)  # [b, P + 1, C]
        return visual.proj(states[:, 0]), visual.proj(states[:, 1:])
    if hasattr(visual, "trunk"):
        features = visual.trunk.forward_features(pixels)  # [b, c, h, w]
        pooled = visual.head(visual.trunk.forward_head(features))
        return pooled, visual.head.proj(features.flatten(2).transpose(1, 2))
    found = visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True, output_fmt="NLC")
    patches = found["image_intermediates"][-1]
    return found["image_features"], patches @ visual.proj if visual.proj is not None else patches


def _is_same(found: tuple[Tensor, Tensor | None], expected: tuple[Tensor, Tensor | None]) -> bool:
    """Whether outputs agree within what the order of sums changes, relative to the largest."""
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None or one.shape != other.shape:
            return False
        if (one - other).abs().max() > _SAME_SHARE * other.abs().max():
            return False
    return True
