"""Training part of a backbone: frozen early stages, and styles mixed between the pictures of a batch.

Notation: b batch, c channels, h, w sides of a feature map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from asymcir_training.errors import DataError

_EPS = 1e-6


def freeze_stages(backbone: nn.Module, names: Sequence[str]) -> None:
    """Stop the training of named modules ("conv_stem", "blocks.0"), batch statistics included.

    Early stages that no gradient reaches cost a third of what they cost otherwise, and ImageNet's edges and colours are
    as good as one's own.

    Raises:
        DataError: the backbone has no such module.
    """
    for module in find_modules(backbone, names):
        module.requires_grad_(False).eval()


@contextmanager
def mixed_styles(backbone: nn.Module, names: Sequence[str], share: float) -> Iterator[None]:
    """Within this context, mix styles after each named module in training mode, in `share` of the pictures.

    Source: MixStyle, Zhou et al., ICLR 2021: a feature map's channel means and deviations carry a picture's style, so
    mixing them between pictures makes styles that no illustrator drew.
    """

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del module, inputs
        return mix_styles(output, share) if backbone.training else output

    handles = [module.register_forward_hook(hook) for module in find_modules(backbone, names)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mix_styles(features: Tensor, share: float, concentration: float = 0.1) -> Tensor:
    """Give some pictures a mixture of their own and another one's channel statistics: [b, c, h, w] -> the same shape.

    Args:
        features: [b, c, h, w].
        share: of pictures that are changed.
        concentration: of the Beta distribution that mixing weights come from; below 1, weights near 0 and 1.
    """
    count = features.shape[0]
    mean = features.mean(dim=(2, 3), keepdim=True).detach()
    deviation = (features.var(dim=(2, 3), correction=0, keepdim=True) + _EPS).sqrt().detach()
    other = torch.randperm(count)
    weight = torch.distributions.Beta(concentration, concentration).sample((count, 1, 1, 1))
    weight = torch.where(torch.rand(count, 1, 1, 1) < share, weight, torch.ones_like(weight)).to(features.device)
    mixed_mean = weight * mean + (1.0 - weight) * mean[other]
    mixed_deviation = weight * deviation + (1.0 - weight) * deviation[other]
    return (features - mean) / deviation * mixed_deviation + mixed_mean


def find_modules(backbone: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Look modules up by their dotted names.

    Raises:
        DataError: no such module; names the first level of what is there.
    """
    known = dict(backbone.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        top = ", ".join(name for name in known if name and "." not in name)
        raise DataError(f"the backbone has no module {', '.join(missing)}; its parts are {top}")
    return [known[name] for name in names]
