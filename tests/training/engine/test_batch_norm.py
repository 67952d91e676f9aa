"""Batch norms on several processes: refused on the CPU, synchronised on CUDA; and their statistics between chunks."""

import copy

import pytest
import timm
import torch
from asymcir_training.engine.batch_norm import check_batch_norms, still_statistics, synchronise_batch_norms
from asymcir_training.engine.processes import Processes
from asymcir_training.errors import ConfigError
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

TWO_CPUS = Processes(world=2)
TWO_GPUS = Processes(world=2, device=torch.device("cuda", 0))  # nothing is computed there


def _norms() -> dict[str, nn.Module]:
    """Make batch norms with weights that are not all alike."""
    torch.manual_seed(3)
    found = {
        "2d": nn.BatchNorm2d(6, momentum=0.3),
        "mean of all batches": nn.BatchNorm2d(6, momentum=None),
        "act": BatchNormAct2d(6, act_layer=nn.SiLU, drop_layer=lambda: nn.Dropout(0.0)),
    }
    for norm in found.values():
        for value in norm.parameters():
            nn.init.normal_(value, mean=1.0)
    return found


def _batch() -> Tensor:
    torch.manual_seed(4)
    return 5.0 + 2.0 * torch.randn(10, 6, 3, 4)


def _freeze(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def test_batch_norms_that_train_are_refused_on_several_cpu_processes_with_the_ways_out() -> None:
    model = timm.create_model("test_efficientnet", num_classes=0).train()
    for check in (check_batch_norms, synchronise_batch_norms):
        with pytest.raises(
            ConfigError, match=r"this EfficientNet \(bn1, .* and \d+ more\) .* of 2 CPU processes"
        ) as caught:
            check(model, TWO_CPUS)
        for way in ("one process", "freeze", "without batch norms", "CUDA"):
            assert way in str(caught.value)
    with pytest.raises(ConfigError, match=r"this BatchNorm2d \(itself\) would"):
        check_batch_norms(nn.BatchNorm2d(3), TWO_CPUS)


def test_frozen_ones_others_norms_one_process_and_cuda_are_taken() -> None:
    model = timm.create_model("test_efficientnet", num_classes=0).train()
    check_batch_norms(model, Processes())
    check_batch_norms(model, TWO_GPUS)
    check_batch_norms(timm.create_model("test_vit", num_classes=0).train(), TWO_CPUS)
    _freeze(model)
    before = list(model.modules())
    synchronise_batch_norms(model, TWO_CPUS)
    assert list(model.modules()) == before and model.training


def test_on_cuda_they_become_torchs_and_keep_parameters_keys_and_layers() -> None:
    model = timm.create_model("test_efficientnet", num_classes=0).train()
    plain = copy.deepcopy(model)
    before = {name: id(value) for name, value in model.named_parameters()}
    model.bn1.eval()
    synchronise_batch_norms(model, TWO_GPUS)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in model.modules()) == sum(
        isinstance(part, nn.BatchNorm2d) for part in plain.modules()
    )
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(model.bn1.act, nn.SiLU) and not model.bn1.training and model.bn2.training
    plain.load_state_dict(model.state_dict())
    synchronise_batch_norms(model, TWO_GPUS)  # a second trainer's call
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(pictures), model.eval()(pictures))


@pytest.mark.parametrize("kind", list(_norms()))
def test_still_statistics_stay_in_training_and_move_again_afterwards(kind: str) -> None:
    norm, twin = _norms()[kind], _norms()[kind]
    before = copy.deepcopy(norm.state_dict())
    x = _batch()
    with still_statistics([norm]):
        assert torch.equal(norm(x), twin(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    norm(x)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in norm.state_dict().items())
