import pytest
import timm
import torch
from asymcir_training import DataError
from asymcir_training.models.mix_style import freeze_stages, mix_styles, mixed_styles
from torch import Tensor, nn


def _backbone() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet", num_classes=0).train()


def _styles(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(dim=(2, 3), keepdim=True), features.std(dim=(2, 3), keepdim=True)


def test_frozen_stages_keep_weights_and_batch_statistics_and_the_rest_learns() -> None:
    backbone = _backbone()
    freeze_stages(backbone, ("conv_stem", "bn1", "blocks.0"))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([value for value in backbone.parameters() if value.requires_grad], lr=0.1)
    backbone(torch.randn(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    frozen = ("conv_stem.", "bn1.", "blocks.0.")
    for name, value in backbone.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]), name
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert "conv_head.weight" in moved and "bn2.running_mean" in moved


@pytest.mark.parametrize("name", ["blocks.99", "stem"])
def test_an_unknown_stage_is_refused_and_the_parts_are_named(name: str) -> None:
    with pytest.raises(DataError, match=rf"no module {name}; its parts are .*conv_stem, .*blocks"):
        freeze_stages(_backbone(), ("conv_stem", name))
    with pytest.raises(DataError, match="its parts are"), mixed_styles(_backbone(), (name,), 0.5):
        pass


def test_no_share_mixes_nothing() -> None:
    torch.manual_seed(0)
    features = 3.0 * torch.randn(8, 5, 6, 6) + 2.0
    torch.testing.assert_close(mix_styles(features, 0.0), features, rtol=1e-4, atol=1e-4)


def test_mixing_changes_the_style_and_keeps_the_content() -> None:
    torch.manual_seed(0)
    features = torch.randn(16, 5, 6, 6) * torch.rand(16, 5, 1, 1).add(0.5) + torch.randn(16, 5, 1, 1)
    mixed = mix_styles(features, 1.0, concentration=1.0)
    (mean, deviation), (mixed_mean, mixed_deviation) = _styles(features), _styles(mixed)
    torch.testing.assert_close(
        (mixed - mixed_mean) / mixed_deviation, (features - mean) / deviation, rtol=1e-3, atol=1e-4
    )
    assert (mixed_mean - mean).abs().max() > 0.1 and (mixed_deviation - deviation).abs().max() > 0.1
    for new, old in ((mixed_mean, mean), (mixed_deviation, deviation)):  # a mixture never leaves the batch's range
        assert (new >= old.amin(dim=0) - 1e-3).all() and (new <= old.amax(dim=0) + 1e-3).all()


def test_about_the_asked_share_of_pictures_is_mixed() -> None:
    torch.manual_seed(0)
    features = torch.randn(400, 2, 3, 3) + torch.randn(400, 2, 1, 1)
    changed = (mix_styles(features, 0.5, concentration=1.0) - features).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert 0.4 < changed.float().mean() < 0.6


def test_styles_are_mixed_within_the_context_in_training_mode_alone() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    pictures = torch.randn(16, 3, 8, 8)
    plain = backbone(pictures)
    with mixed_styles(backbone, ("0",), 1.0):
        assert not torch.allclose(backbone(pictures), plain, atol=1e-3)
        backbone.eval()
        assert torch.equal(backbone(pictures), plain)
        backbone.train()
        backbone[0].eval()  # as a frozen stage is; the backbone still trains
        assert not torch.allclose(backbone(pictures), plain, atol=1e-3)
    assert torch.equal(backbone(pictures), plain)
    with pytest.raises(KeyboardInterrupt), mixed_styles(backbone, ("0",), 1.0):
        raise KeyboardInterrupt
    assert torch.equal(backbone(pictures), plain)
