"""Pictures as tensors: the order of batches, random views, normalisation.

Notation: n pictures, b batch, S picture side.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random views of a picture.

    Attributes:
        scale: least and largest zoom.
        shift: largest shift as a share of the side.
        rotation_degrees: largest rotation. There is no mirroring: left and right mean something.
        brightness: largest relative change.
        contrast, saturation: largest relative change.
        hue_degrees: largest turn of the hue.
        blur: share of views that are blurred, as far as halving the resolution does.
        noise: largest standard deviation, as a share of 255.
        grey: share of views without colour.
    """

    scale: tuple[float, float] = (0.7, 1.15)
    shift: float = 0.08
    rotation_degrees: float = 10.0
    brightness: float = 0.15
    contrast: float = 0.0
    saturation: float = 0.0
    hue_degrees: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    grey: float = 0.0


def batch_at(count: int, size: int, *, seed: int, number: int) -> NDArray[np.int64]:
    """Return the batch of one step, so that a resumed run sees what an uninterrupted one would."""
    per_epoch = max(1, count // size)
    epoch, place = divmod(number, per_epoch)
    return _epoch_order(count, seed, epoch)[place * size : (place + 1) * size].copy()


@functools.lru_cache(maxsize=2)  # of a million pictures an order takes 15 ms, as long as a step of a small student
def _epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def augment(pixels: Tensor, config: Augmentation, generator: torch.Generator | None = None) -> Tensor:
    """Draw a random view of each picture, the border continued outwards.

    Args:
        pixels: [b, 3, S, S], float in [0, 255].
        generator: of the draws; without it torch's own.

    Returns:
        The same shape and range.
    """
    count = pixels.shape[0]
    low, high = config.scale
    draw = functools.partial(_draw_uniform, generator=generator)
    zoom = draw((count,), low, high)
    angle = torch.deg2rad(draw((count,), -config.rotation_degrees, config.rotation_degrees))
    shift = draw((count, 2), -config.shift, config.shift) * 2.0
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack(
        [torch.stack([cosine, -sine, shift[:, 0]], dim=1), torch.stack([sine, cosine, shift[:, 1]], dim=1)], dim=1
    )  # [b, 2, 3]
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    view = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain = draw((count, 1, 1, 1), 1.0 - config.brightness, 1.0 + config.brightness)
    view = _change_colours(view * gain, config, generator)
    if config.blur:
        soft = functional.interpolate(functional.avg_pool2d(view, 2), size=view.shape[-2:], mode="bilinear")
        view = torch.where(draw((count, 1, 1, 1), 0.0, 1.0) < config.blur, soft, view)
    if config.noise:
        deviation = 255.0 * config.noise * draw((count, 1, 1, 1), 0.0, 1.0)
        view = view + deviation * torch.randn(view.shape, generator=generator)
    view = view.clamp(0.0, 255.0)
    grey = draw((count, 1, 1, 1), 0.0, 1.0) < config.grey
    return torch.where(grey, view.mean(dim=1, keepdim=True), view)


def _change_colours(view: Tensor, config: Augmentation, generator: torch.Generator | None) -> Tensor:
    """Turn the hue, stretch the saturation around grey and the contrast around the mean, each picture by its own."""
    if not (config.contrast or config.saturation or config.hue_degrees):
        return view
    count = view.shape[0]
    draw = functools.partial(_draw_uniform, generator=generator)
    angle = torch.deg2rad(draw((count,), -config.hue_degrees, config.hue_degrees))
    stretch = draw((count,), 1.0 - config.saturation, 1.0 + config.saturation)
    # A rotation about the grey axis (Rodrigues), scaled off that axis.
    onto_grey = torch.full((3, 3), 1.0 / 3.0)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3.0**0.5
    turn = angle.cos()[:, None, None] * (torch.eye(3) - onto_grey) + angle.sin()[:, None, None] * cross
    matrix = onto_grey + stretch[:, None, None] * turn  # [b, 3, 3]
    view = torch.einsum("bij,bjhw->bihw", matrix, view)
    mean = view.mean(dim=(1, 2, 3), keepdim=True)
    return mean + draw((count, 1, 1, 1), 1.0 - config.contrast, 1.0 + config.contrast) * (view - mean)


def _draw_uniform(shape: tuple[int, ...], low: float, high: float, *, generator: torch.Generator | None) -> Tensor:
    return torch.empty(shape).uniform_(low, high, generator=generator)
