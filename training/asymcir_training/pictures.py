"""Pictures for training: one array in memory or on disk, augmented on the fly.

Notation: n pictures, b batch, S picture side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from asymcir_protos import ImageError, Preprocessing, preprocess, read_image
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from asymcir_training.errors import DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


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


def load_folder(folder: Path, spec: Preprocessing, store: Path) -> tuple[NDArray[np.uint8], list[Path], list[str]]:
    """Read every picture below a folder, once, into a memory-mapped file.

    Args:
        folder: searched recursively.
        spec: how pictures come in.
        store: the file, 3 * S * S bytes a picture; replaced.

    Returns:
        pictures [n, S, S, 3], their paths, and one line for each file that could not be read.

    Raises:
        DataError: no usable picture.
    """
    candidates = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths: list[Path] = []
    problems: list[str] = []
    if candidates:
        store.parent.mkdir(parents=True, exist_ok=True)
        shape = (len(candidates), spec.size, spec.size, 3)
        pictures = np.lib.format.open_memmap(store, mode="w+", dtype=np.uint8, shape=shape)
        for path in candidates:
            try:
                pictures[len(paths)] = preprocess(read_image(path), spec)
                paths.append(path)
            except ImageError as exc:
                problems.append(str(exc))
    if not paths:
        raise DataError(
            f"no usable picture below {folder} ({len(problems)} unreadable): expected PNG, JPEG, WebP files"
        )
    return pictures[: len(paths)], paths, problems


def batch_at(count: int, size: int, *, seed: int, number: int) -> NDArray[np.int64]:
    """Return the batch of one step, so that a resumed run sees what an uninterrupted one would."""
    per_epoch = max(1, count // size)
    epoch, place = divmod(number, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[place * size : (place + 1) * size]


def augment(pixels: Tensor, config: Augmentation) -> Tensor:
    """Draw a random view of each picture, the border continued outwards.

    Args:
        pixels: [b, 3, S, S], float in [0, 255].

    Returns:
        The same shape and range.
    """
    count = pixels.shape[0]
    low, high = config.scale
    zoom = torch.empty(count).uniform_(low, high)
    angle = torch.deg2rad(torch.empty(count).uniform_(-config.rotation_degrees, config.rotation_degrees))
    shift = torch.empty(count, 2).uniform_(-config.shift, config.shift) * 2.0
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack(
        [torch.stack([cosine, -sine, shift[:, 0]], dim=1), torch.stack([sine, cosine, shift[:, 1]], dim=1)], dim=1
    )  # [b, 2, 3]
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    view = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain = torch.empty(count, 1, 1, 1).uniform_(1.0 - config.brightness, 1.0 + config.brightness)
    view = _change_colours(view * gain, config)
    if config.blur:
        soft = functional.interpolate(functional.avg_pool2d(view, 2), size=view.shape[-2:], mode="bilinear")
        view = torch.where(torch.rand(count, 1, 1, 1) < config.blur, soft, view)
    if config.noise:
        view = view + 255.0 * config.noise * torch.rand(count, 1, 1, 1) * torch.randn_like(view)
    view = view.clamp(0.0, 255.0)
    grey = torch.rand(count, 1, 1, 1) < config.grey
    return torch.where(grey, view.mean(dim=1, keepdim=True), view)


def _change_colours(view: Tensor, config: Augmentation) -> Tensor:
    """Turn the hue, stretch the saturation around grey and the contrast around the mean, each picture by its own."""
    if not (config.contrast or config.saturation or config.hue_degrees):
        return view
    count = view.shape[0]
    angle = torch.deg2rad(torch.empty(count).uniform_(-config.hue_degrees, config.hue_degrees))
    stretch = torch.empty(count).uniform_(1.0 - config.saturation, 1.0 + config.saturation)
    # A rotation about the grey axis (Rodrigues), scaled off that axis.
    onto_grey = torch.full((3, 3), 1.0 / 3.0)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3.0**0.5
    turn = angle.cos()[:, None, None] * (torch.eye(3) - onto_grey) + angle.sin()[:, None, None] * cross
    matrix = onto_grey + stretch[:, None, None] * turn  # [b, 3, 3]
    view = torch.einsum("bij,bjhw->bihw", matrix, view)
    mean = view.mean(dim=(1, 2, 3), keepdim=True)
    return mean + torch.empty(count, 1, 1, 1).uniform_(1.0 - config.contrast, 1.0 + config.contrast) * (view - mean)


def gather(sources: Sequence[NDArray[np.uint8]], index: NDArray[np.int64]) -> Tensor:
    """Pick pictures out of several arrays as if they were one: [b, 3, S, S], float in [0, 255]."""
    ends = np.cumsum([len(source) for source in sources])
    which = np.searchsorted(ends, index, side="right")
    starts = ends - [len(source) for source in sources]
    chosen = np.stack([sources[w][i - starts[w]] for w, i in zip(which, index, strict=True)])
    return torch.from_numpy(chosen).permute(0, 3, 1, 2).float()


def normalise_pixels(pixels: Tensor, spec: Preprocessing) -> Tensor:
    """Turn [b, S, S, 3] uint8 into [b, 3, S, S] float, (pixels / 255 - mean) / std."""
    mean = torch.tensor(spec.mean, device=pixels.device)
    std = torch.tensor(spec.std, device=pixels.device)
    return ((pixels.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)


def draw_views(
    sources: Sequence[NDArray[np.uint8]], index: NDArray[np.int64], config: Augmentation, spec: Preprocessing
) -> Tensor:
    """Draw one augmented, normalised view of each picked picture: [b, 3, S, S], channels last in memory."""
    views = augment(gather(sources, index), config)
    return normalise_pixels(views.permute(0, 2, 3, 1), spec).contiguous(memory_format=torch.channels_last)
