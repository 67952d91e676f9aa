"""How a foundation and a light encoder see pixels: normalised to zero mean and unit variance per channel."""

import torch
from asymcir_common import Preprocessing
from torch import Tensor


def normalise_pixels(pixels: Tensor, spec: Preprocessing) -> Tensor:
    """Turn [b, S, S, 3] uint8 into [b, 3, S, S] float, (pixels / 255 - mean) / std."""
    mean = torch.tensor(spec.mean, device=pixels.device)
    std = torch.tensor(spec.std, device=pixels.device)
    return ((pixels.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)


IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_preprocessing(size: int) -> Preprocessing:
    """Return how an encoder with an ImageNet backbone sees pictures: bilinear, which Core ML can do."""
    return Preprocessing(size=size, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
