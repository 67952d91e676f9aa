import dataclasses

import pytest
import torch
from asymcir_training.batches.views import Augmentation, augment

STILL = Augmentation(scale=(1.0, 1.0), shift=0.0, rotation_degrees=0.0, brightness=0.0)
CHANGES = {"contrast": 0.5, "saturation": 0.5, "hue_degrees": 60.0, "blur": 1.0, "noise": 0.3}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_each_change_shows_and_stays_within_the_range(name: str) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(4, 3, 17, 17) * 255  # an odd side
    view = augment(pixels, dataclasses.replace(STILL, **{name: CHANGES[name]}))
    assert view.shape == pixels.shape and (view - pixels).abs().max() > 10.0
    assert view.min() >= 0.0 and view.max() <= 255.0


def test_all_changes_together_stay_within_the_range() -> None:
    torch.manual_seed(0)
    pixels = (torch.rand(8, 3, 16, 16) > 0.5) * 255.0
    view = augment(pixels, Augmentation(**CHANGES, grey=0.5))
    assert view.shape == pixels.shape and view.isfinite().all()
    assert view.min() >= 0.0 and view.max() <= 255.0


def test_turning_the_hue_keeps_grey_pixels_grey_and_the_mean_of_the_others() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(STILL, hue_degrees=90.0, saturation=0.5)
    grey = torch.linspace(0.0, 255.0, 64).reshape(1, 1, 8, 8).expand(4, 3, 8, 8)
    torch.testing.assert_close(augment(grey, config), grey, rtol=1e-4, atol=1e-2)
    coloured = 100.0 + 50.0 * torch.rand(4, 3, 8, 8)
    turned = augment(coloured, config)
    torch.testing.assert_close(turned.mean(dim=1), coloured.mean(dim=1), rtol=1e-4, atol=1e-2)
    assert (turned - coloured).abs().max() > 5.0


def test_contrast_stretches_around_the_mean_of_each_picture() -> None:
    torch.manual_seed(0)
    pixels = 110.0 + 30.0 * torch.rand(4, 3, 8, 8) + torch.arange(4.0)[:, None, None, None]
    view = augment(pixels, dataclasses.replace(STILL, contrast=0.5))
    mean = pixels.mean(dim=(1, 2, 3))
    torch.testing.assert_close(view.mean(dim=(1, 2, 3)), mean, rtol=1e-4, atol=1e-2)
    gain = (view - mean[:, None, None, None]).std(dim=(1, 2, 3)) / pixels.std(dim=(1, 2, 3))
    assert (gain > 0.49).all() and (gain < 1.51).all() and gain.unique().numel() == 4


def test_blur_and_noise_do_what_they_say() -> None:
    torch.manual_seed(0)
    board = 255.0 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2).expand(2, 3, 8, 8)
    soft = augment(board, dataclasses.replace(STILL, blur=1.0))
    torch.testing.assert_close(soft, torch.full_like(soft, 127.5), rtol=1e-4, atol=0.1)
    flat = torch.full((16, 3, 32, 32), 127.5)
    spread = augment(flat, dataclasses.replace(STILL, noise=0.1)).std(dim=(1, 2, 3))
    assert spread.max() < 26.5 and spread.unique().numel() == 16  # up to 0.1 of 255, each picture its own
